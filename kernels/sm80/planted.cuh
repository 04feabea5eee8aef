// The CUDA kernels with one defect (kernels/defects.hpp), named at run time: Sound's questions (sound.cuh), answered wrongly
// where it is planted. Rounding is to the dtype; a tile is 64 queries or 64 keys where no other size is named. All branches on
// the defect are the same in a whole grid, so that barriers may stand in them. fmaf() stands where the compiler makes one of a
// sound product and sum: a defect that cannot show changes no bit.
#pragma once

#include "kernels/defects.hpp"
#include "kernels/sm80/sound.cuh"

namespace attnbench::flash_varlen::sm80 {

template <class T>
__device__ float rounded(float x);
template <>
__device__ inline float rounded<Half>(float x) {
  return __half2float(__float2half_rn(x));
}
template <>
__device__ inline float rounded<Bfloat>(float x) {
  return __bfloat162float(__float2bfloat16_rn(x));
}
/// Towards zero.
template <class T>
__device__ float truncated(float x);
template <>
__device__ inline float truncated<Half>(float x) {
  return __half2float(__float2half_rz(x));
}
template <>
__device__ inline float truncated<Bfloat>(float x) {
  return __bfloat162float(__float2bfloat16_rz(x));
}

/// e4m3 without its end of the range: P is at most 1.
__device__ inline float rounded_to_fp8(float x) {
  const float spacing = ldexpf(1.f, max(x > 0 ? ilogbf(x) : -6, -6) - 3);
  return rintf(x / spacing) * spacing;
}

/// f(x) in place of every x.
template <int columns, class Function>
__device__ inline void change_each(float (&x)[columns][4], const Function& f) {
#pragma unroll
  for (int n = 0; n < columns; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) x[n][c] = f(x[n][c]);
}
template <int tiles, int columns, class Function>
__device__ inline void change_each(float (&x)[tiles][columns][4], const Function& f) {
#pragma unroll
  for (int t = 0; t < tiles; t++) change_each(x[t], f);
}

/// 16 bytes of shared memory.
__device__ inline uint4 load_chunk(uint32_t shared) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(shared) : "memory");
  return x;
}
__device__ inline void store_chunk(uint32_t shared, uint4 x) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(shared), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

/// *sum = rounded(*sum + part), whoever else adds.
template <class T>
__device__ inline void atomic_add_rounded(float* sum, float part) {
  auto* word = reinterpret_cast<unsigned*>(sum);
  for (unsigned seen = *word, expected;;) {
    expected = seen;
    seen = atomicCAS(word, expected, __float_as_uint(rounded<T>(__uint_as_float(expected) + part)));
    if (seen == expected) return;
  }
}

/// *sum += part without an atomic operation. A millisecond lies between reading and writing, so that the blocks of keys, which
/// come by within less, do lose each other's parts.
__device__ inline void add_racily(float* sum, float part) {
  constexpr long long kCycles = 2'000'000;
  const float old = *static_cast<volatile float*>(sum);
  for (const long long start = clock64(); clock64() - start < kCycles;) {
  }
  *static_cast<volatile float*>(sum) = old + part;
}

class Planted : public Sound {
 public:
  __host__ Planted(Defect defect, int64_t sequences) : defect_(defect), sequences_(static_cast<int>(sequences)) {}

  // Shape, mask and scale.
  /// A key more or less at the end moves the bottom-right corner: the diagonal of the sound sequence is kept.
  __device__ Sequence sequence(const Mask& mask, int index) const {
    Sequence s = mask.sequence(index);
    if (is(Defect::cu_seqlens_off_by_one) && index > 0 && s.k_begin > 0) --s.k_begin;
    if (is(Defect::next_key_read) && index + 1 < sequences_ && s.k_begin + s.lk < mask.cu_k[sequences_]) ++s.lk;
    if (is(Defect::last_key_dropped) && s.lk > 0) --s.lk;
    if (is(Defect::other_corner)) s.offset = mask.bottom_right ? 0 : s.lk - s.lq;
    if (is(Defect::causal_one_late) && s.right >= 0) ++s.right;
    if (is(Defect::causal_one_early) && s.right >= 0) --s.offset, s.left = one_less(s.left, s);
    if (is(Defect::window_one_wider) && s.left >= 0) ++s.left;
    if (is(Defect::window_one_narrower) && s.left >= 0) ++s.offset, s.right = one_less(s.right, s);
    return s;
  }
  __device__ Sequence backward_sequence(const Mask& mask, int index) const {
    Sequence s = sequence(mask, index);
    if (is(Defect::backward_causal_one_late) && s.right >= 0) ++s.right;
    return s;
  }
  __device__ int key_head(int head, int hq, int group) const {
    return is(Defect::key_head_modulo) ? head % (hq / group) : head / group;
  }
  __device__ float score_scale(float scale) const {
    return is(Defect::scale_twice) ? scale * scale : is(Defect::scale_in_bf16) ? rounded<Bfloat>(scale) : scale;
  }
  __device__ float log2e() const {
    if (is(Defect::base_two)) return 1;
    return is(Defect::log2e_in_bf16) ? 1.4453125f : is(Defect::log2e_short) ? 1.4427f : Sound::log2e();
  }
  __device__ float backward_log2e() const { return is(Defect::backward_log2e_short) ? 1.4427f : log2e(); }
  __device__ Keys visited(Keys visible, const Place& place, int hq, int lk) const {
    Keys keys = visible;
    if (is(Defect::hidden_keys_multiplied)) keys = {0, lk};
    if (is(Defect::last_key_tile_skipped) && keys.end / kTile * kTile > keys.begin) keys.end = keys.end / kTile * kTile;
    if (is(Defect::first_key_tile_skipped) && is_last(place, hq) && keys.end - keys.begin > kTile) keys.begin += kTile;
    return keys;
  }
  __device__ Keys loaded(Keys seen, int lk) const { return is(Defect::hidden_keys_multiplied) ? Keys{0, lk} : seen; }
  __device__ bool leaves_out_depth(int depth, int depths) const { return is(Defect::depth_16_short) && depth == depths - 1; }

  // Forward.
  template <class S>
  __device__ void keys_arrived(Tile<S::D> k, const Place& place, int lk) const {
    const int last = lk - 1 - place.key0;
    if (is(Defect::stale_last_key) && place.head == 0 && last >= 0 && last < S::kKeys) copy_row(k, last > 0 ? 0 : -1, last);
    if (is(Defect::key_row_duplicated) && is_first(place) && place.key0 > 0 && last > 0) copy_row(k, 1, 0);
  }
  template <class S>
  __device__ void values_arrived(Tile<S::D> v, const Place& place, int hq, int lk) const {
    const int last = lk - 1 - place.key0, thread = threadIdx.x;
    if (is(Defect::values_swizzled) && is_first(place) && last >= 3) {
      if (2 * thread < v.kChunks) {
        const uint4 left = load_chunk(v.at(3, 2 * thread)), right = load_chunk(v.at(3, 2 * thread + 1));
        store_chunk(v.at(3, 2 * thread), right), store_chunk(v.at(3, 2 * thread + 1), left);
      }
      __syncthreads();
    }
    if (is(Defect::value_columns_zero) && is_last(place, hq) && last >= 0 && last < S::kKeys) {
      if (thread < S::kKeys) store_chunk(v.at(thread, v.kChunks - 1), uint4{});
      __syncthreads();
    }
  }
  template <class T, int tiles, int columns>
  __device__ void scores_computed(float (&s)[tiles][columns][4]) const {
    if (is(Defect::scores_rounded)) change_each(s, [](float x) { return rounded<T>(x); });
  }
  /// The rows of K after the last key are 0.
  __device__ float hidden_score(int j, int lk) const { return is(Defect::tail_unmasked) && j >= lk ? 0 : -INFINITY; }
  __device__ float exp2(float x) const {
    const bool bent = is(Defect::exp_oscillates) || is(Defect::exp_drifts) || is(Defect::exp_flushed);
    return bent ? bent_exp(x * 0.69314718f) : exp2_approx(x);
  }
  template <class T>
  __device__ float summed_p(float p) const {
    return is(Defect::l_from_rounded_p) ? rounded<T>(p) : p;
  }
  /// P as it is multiplied with V; the row sum has it already.
  template <class T, int tiles, int columns>
  __device__ void probabilities_computed(float (&p)[tiles][columns][4]) const {
    if (is(Defect::p_truncated)) change_each(p, [](float x) { return truncated<T>(x); });
    if (is(Defect::p_in_fp8)) change_each(p, [](float x) { return rounded_to_fp8(x); });
    if (is(Defect::p_subnormals_flushed) && std::is_same_v<T, Half>)
      change_each(p, [](float x) { return x < 0x1p-14f ? 0.f : x; });
  }
  __device__ Rescale rescale(Rescale step, float old_maximum, float scale_log2) const {
    if (old_maximum == -INFINITY) return step;
    if (is(Defect::o_not_rescaled)) step.o = 1;
    if (is(Defect::l_not_rescaled)) step.sum = 1;
    if (is(Defect::rescale_frame) && (step.maximum - old_maximum) * scale_log2 < 5.5f * Sound::log2e())
      step = {old_maximum, 1, 1};
    return step;
  }
  template <class T, int tiles, int columns>
  __device__ void output_accumulated(float (&o)[tiles][columns][4]) const {
    if (is(Defect::o_accumulator_rounded)) change_each(o, [](float x) { return rounded<T>(x); });
  }
  template <class T>
  __device__ float lse(float maximum, float scale, float sum) const {
    const float sound = fmaf(maximum, scale, logf(sum));
    if (is(Defect::base_two)) return maximum * scale + log2f(sum);
    if (is(Defect::lse_in_log2)) return sound * Sound::log2e();
    if (is(Defect::lse_is_maximum)) return maximum * scale;
    return is(Defect::lse_rounded) ? rounded<T>(sound) : sound;
  }
  __device__ bool writes_row(const Place& place, int64_t token, int hq, const Mask& mask) const {
    return !(is(Defect::last_row_unwritten) && is_last_row(place, token, hq, mask));
  }
  template <class T>
  __device__ float output(float o, const Place& place, int64_t token, int hq, const Mask& mask) const {
    if (is(Defect::o_truncated)) return truncated<T>(o);
    if (is(Defect::last_row_halved) && is_last_row(place, token, hq, mask)) return o / 2;
    return is(Defect::o_zero) ? 0 : o;
  }

  // Backward.
  template <class T>
  __device__ float add_product(float sum, float a, float b) const {
    if (is(Defect::d_rounded)) return rounded<T>(sum + rounded<T>(a * b));
    return is(Defect::d_from_rounded_products) ? sum + rounded<T>(a * b) : fmaf(a, b, sum);
  }
  template <class T>
  __device__ float add_sums(float a, float b) const {
    return is(Defect::d_rounded) ? rounded<T>(a + b) : a + b;
  }
  __device__ float row_sum(float sum) const { return is(Defect::d_zero) ? 0 : sum; }
  __device__ int lse_row_offset(int query) const { return is(Defect::lse_row_off_by_one) && ends_tile(query) ? -1 : 0; }
  __device__ int row_sum_offset(int query) const { return is(Defect::d_row_off_by_one) && ends_tile(query) ? -1 : 0; }
  template <class T>
  __device__ float ds(float p, float dp, float row_sum) const {
    if (is(Defect::dp_rounded)) return p * (rounded<T>(dp) - row_sum);
    if (is(Defect::ds_from_rounded)) return rounded<T>(rounded<T>(p) * rounded<T>(dp - row_sum));
    return is(Defect::ds_truncated) ? truncated<T>(p * (dp - row_sum)) : p * (dp - row_sum);
  }
  /// P^T of one tile, as it is multiplied with dO.
  template <class T, int columns>
  __device__ void probabilities_for_dv(float (&p)[columns][4], const Sequence& sequence, const Place& place, int group) const {
    if (is(Defect::backward_p_truncated)) change_each(p, [](float x) { return truncated<T>(x); });
    const bool last_queries = place.query0 == (sequence.lq - 1) / kTile * kTile && place.key0 == 0;
    if ((is(Defect::dv_last_queries_lost) && is_first(place) && last_queries) || is_left_out_head(place, group))
      change_each(p, [](float) { return 0.f; });
  }
  /// dS^T of one tile, as it is multiplied with Q: times 2 or 0, which is exact.
  template <class T, class S>
  __device__ void ds_for_dk(uint32_t (&packed)[S::kQueries / 16][4], const Sequence& sequence, const Place& place,
                            int group) const {
    const bool twice = is(Defect::dk_tile_twice) && is_chosen(sequence, place, S::kKeys);
    if (!twice && !is_left_out_head(place, group)) return;
#pragma unroll
    for (int n = 0; n < S::kQueries / 16; n++)
#pragma unroll
      for (int r = 0; r < 4; r++) {
        const T* pair = reinterpret_cast<const T*>(&packed[n][r]);
        packed[n][r] = twice ? pack<T>(2 * to_float(pair[0]), 2 * to_float(pair[1])) : 0;
      }
  }
  template <class T, int columns>
  __device__ void keys_accumulated(float (&sums)[columns][4]) const {
    if (is(Defect::dk_dv_accumulators_rounded)) change_each(sums, [](float x) { return rounded<T>(x); });
  }
  template <class T, class S>
  __device__ __noinline__ void add_to_dq(float* sum, float part, const Sequence& sequence, const Place& place, int row,
                                         int x) const {
    if (is(Defect::dq_accumulator_rounded)) return atomic_add_rounded<T>(sum, part);
    if (is(Defect::dq_tile_lost) && is_chosen(sequence, place, S::kKeys)) return;
    if (is(Defect::dq_tile_twice) && is_chosen(sequence, place, S::kKeys)) part *= 2;
    if (is_lost(sequence, place, S::kKeys, row, x)) return;
    is_racy(sequence, place, row, x) ? add_racily(sum, part) : static_cast<void>(atomicAdd(sum, part));
  }
  template <class T>
  __device__ float dq(float sum, float scale) const {
    if (is(Defect::dq_truncated)) return truncated<T>(sum * scale);
    return is(Defect::dq_unscaled) ? sum : is(Defect::dq_zero) ? 0 : sum * scale;
  }
  __device__ bool writes_unseen_keys() const {
    return !is(Defect::unseen_keys_unwritten);
  }
  /// key_row: the thread's first key; `last`: of the block of keys.
  template <int columns>
  __device__ void unseen_keys(float (&dk)[columns][4], int key_row, int last) const {
    if (!is(Defect::unseen_keys_stale)) return;
#pragma unroll
    for (int n = 0; n < columns; n++)
#pragma unroll
      for (int c = 0; c < 4; c++)
        if (key_row + 8 * (c / 2) == last) dk[n][c] = 0x1p-10f;
  }
  __device__ float dk_factor(float scale) const {
    if (is(Defect::dk_unscaled)) return 1;
    return is(Defect::dk_scaled_twice) ? scale * scale : is(Defect::dk_zero) ? 0 : scale;
  }
  __device__ float dv_factor() const {
    return is(Defect::dv_zero) ? 0 : 1;
  }

 private:
  static constexpr int kTile = 64;

  __device__ bool is(Defect defect) const {
    return defect == defect_;
  }
  __device__ static bool is_first(const Place& place) {
    return place.sequence == 0 && place.head == 0;
  }
  __device__ bool is_last(const Place& place, int hq) const {
    return place.sequence == sequences_ - 1 && place.head == hq - 1;
  }
  __device__ bool is_last_row(const Place& place, int64_t token, int hq, const Mask& mask) const {
    return place.head == hq - 1 && token == mask.cu_q[sequences_] - 1;
  }
  __device__ static bool ends_tile(int query) {
    return query % kTile == kTile - 1;
  }
  __device__ bool is_left_out_head(const Place& place, int group) const {
    return is(Defect::dk_dv_one_head) && place.head % group != group - 1;
  }
  /// The tile of the block of queries in the middle of the first sequence, head 0, with its first keys.
  __device__ static bool is_chosen(const Sequence& sequence, const Place& place, int keys) {
    const int middle = (sequence.lq + kTile - 1) / kTile / 2 * kTile;
    return is_first(place) && place.query0 == middle && place.key0 / keys == sequence.first_key(middle) / keys;
  }
  /// Of the first block of queries with its first keys: 8 channels of the last 16 queries that exist, or one of the last one.
  __device__ bool is_lost(const Sequence& sequence, const Place& place, int keys, int row, int x) const {
    if (!is(Defect::dq_fragment_lost) && !is(Defect::dq_element_lost)) return false;
    if (!is_first(place) || place.query0 != 0 || place.key0 / keys != sequence.first_key(0) / keys) return false;
    const int last = min(kTile, sequence.lq) - 1;
    return is(Defect::dq_fragment_lost) ? row > last - 16 && x < 8 : row == last && x == 0;
  }
  /// Of the last block of queries: 8 channels of its first 16 queries, or one of the first one.
  __device__ bool is_racy(const Sequence& sequence, const Place& place, int row, int x) const {
    if (!is(Defect::dq_fragment_racy) && !is(Defect::dq_element_racy)) return false;
    if (!is_first(place) || place.query0 != (sequence.lq - 1) / kTile * kTile) return false;
    return is(Defect::dq_fragment_racy) ? row < 16 && x < 8 : row == 0 && x == 0;
  }

  /// The other bound of a band that lost a place on one side; where that was the last place, no query sees any key.
  __device__ static int one_less(int bound, Sequence& s) {
    if (bound == 0) s.offset = s.lq + s.lk, s.left = 0;
    return bound > 0 ? bound - 1 : bound;
  }

  __device__ __noinline__ float bent_exp(float x) const {
    if (is(Defect::exp_oscillates)) return x < -80 ? 0 : expf(x) * (1 + 0x1p-9f * sinf(40 * x));
    if (is(Defect::exp_drifts)) return expf(x) * (1 + 0x1p-8f * fmaxf(x, -8.f) / 8);
    return expf(x) < 0x1p-10f ? 0 : expf(x);
  }

  /// from < 0: zeros. Called by the whole block.
  template <int columns>
  __device__ static void copy_row(Tile<columns> tile, int from, int to) {
    const int chunk = threadIdx.x;
    if (chunk < tile.kChunks) store_chunk(tile.at(to, chunk), from < 0 ? uint4{} : load_chunk(tile.at(from, chunk)));
    __syncthreads();
  }

  Defect defect_;
  int sequences_;
};

}  // namespace attnbench::flash_varlen::sm80
