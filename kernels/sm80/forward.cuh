// Forward of flash_varlen for SM 8.0 and later (mma.sync, cp.async). FlashAttention-2, algorithm 1 (arXiv 2307.08691).
//
//   S = scale Q K^T, O = softmax(S) V, LSE = ln sum exp S
// One block: kQueries queries of one head of one sequence; grid (query blocks, hq, sequences), the last query blocks
// first, since causal ones are longest there. kWarps warps, each with kRows = 16 * kTiles query rows.
// For each block of kKeys keys: S (registers) = Q K^T; online softmax in base 2; P, packed to 16 bits, is the A operand
// of O += P V. K of the next block and V of this one are in flight while S is computed.
// Shared memory: Q [kQueries][D], K [kKeys][D], V [kKeys][D], 16-bit, swizzled.
// Registers a thread: O kTiles * D / 2, S kTiles * kKeys / 2.
// Invariants: row_max and row_sum belong to the rows g and g + 8 of each 16-row tile, and the four lanes of a row agree on
// row_max; row_sum is a partial sum until the end.
//
// `variant` is asked wherever the self-test plants a defect: Sound (sound.cuh) answers with what is right and costs nothing.
#pragma once

#include <cmath>

#include "kernels/sm80/primitives.cuh"
#include "kernels/sm80/sound.cuh"
#include "kernels/sm80/visibility.cuh"

namespace attnbench::flash_varlen::sm80 {

template <class T>
struct ForwardArgs {
  const T *q, *k, *v;
  T* o;
  float* lse;                                                                  ///< [total_q, hq]
  int64_t q_token, q_head, k_token, k_head, v_token, v_head, o_token, o_head;  ///< strides in elements
  int hq, group;
  float scale;
  Mask mask;
};

template <int head_dim, int tiles, int warps, int keys>
struct ForwardShape {
  static constexpr int D = head_dim, kTiles = tiles, kWarps = warps, kKeys = keys;
  static constexpr int kRows = 16 * kTiles, kQueries = kRows * kWarps, kThreads = 32 * kWarps;
  static constexpr int kSharedBytes = (kQueries + 2 * kKeys) * D * 2;
};

/// Largest and sum over the four lanes that share a row.
__device__ inline float row_max_of(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float row_sum_of(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/// The state of one warp's rows.
template <class S>
struct SoftmaxRows {
  float o[S::kTiles][S::D / 8][4] = {};
  float max[S::kTiles][2], sum[S::kTiles][2];

  __device__ SoftmaxRows() {
#pragma unroll
    for (int t = 0; t < S::kTiles; t++) max[t][0] = max[t][1] = -INFINITY, sum[t][0] = sum[t][1] = 0;
  }

  /// s becomes exp2(s * scale_log2 - max), with max, sum and o brought to the new maximum. Masked scores are -inf.
  template <class T, class Variant>
  __device__ void update(const Variant& variant, float (&s)[S::kTiles][S::kKeys / 8][4], float scale_log2) {
#pragma unroll
    for (int t = 0; t < S::kTiles; t++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float m = max[t][half];
#pragma unroll
        for (int n = 0; n < S::kKeys / 8; n++) m = fmaxf(m, fmaxf(s[t][n][2 * half], s[t][n][2 * half + 1]));
        m = row_max_of(m);
        const float largest = m == -INFINITY ? 0.f : m;  // a row that has seen no key yet: every exp2 below is 0
        const float origin = largest * scale_log2;
        // The difference first: an unchanged maximum gives exactly 1, tile after tile.
        const float factor = variant.exp2((max[t][half] - largest) * scale_log2);
        const Rescale rescale = variant.rescale({m, factor, factor}, max[t][half], scale_log2);
        max[t][half] = rescale.maximum;
        float partial = 0;
#pragma unroll
        for (int n = 0; n < S::kKeys / 8; n++)
#pragma unroll
          for (int c = 2 * half; c < 2 * half + 2; c++)
            partial += variant.template summed_p<T>(s[t][n][c] = variant.exp2(s[t][n][c] * scale_log2 - origin));
        sum[t][half] = sum[t][half] * rescale.sum + partial;
#pragma unroll
        for (int n = 0; n < S::D / 8; n++) o[t][n][2 * half] *= rescale.o, o[t][n][2 * half + 1] *= rescale.o;
      }
  }
};

/// s = Q K^T for the warp's rows [row0, row0 + kRows) and all keys of the tile.
template <class T, class S, class Variant>
__device__ inline void scores(const Variant& variant, float (&s)[S::kTiles][S::kKeys / 8][4], Tile<S::D> q, Tile<S::D> k,
                              int row0) {
#pragma unroll
  for (int t = 0; t < S::kTiles; t++)
#pragma unroll
    for (int n = 0; n < S::kKeys / 8; n++) s[t][n][0] = s[t][n][1] = s[t][n][2] = s[t][n][3] = 0;
#pragma unroll
  for (int depth = 0; depth < S::D / 16; depth++) {
    if (variant.leaves_out_depth(depth, S::D / 16)) continue;
    uint32_t a[S::kTiles][4];
#pragma unroll
    for (int t = 0; t < S::kTiles; t++) load_matrices(a[t], q.a_fragment(row0 + 16 * t, depth));
#pragma unroll
    for (int n = 0; n < S::kKeys / 16; n++) {
      uint32_t b[4];
      load_matrices(b, k.b_fragments(16 * n, depth));
#pragma unroll
      for (int t = 0; t < S::kTiles; t++) mma<T>(s[t][2 * n], a[t], b[0], b[1]), mma<T>(s[t][2 * n + 1], a[t], b[2], b[3]);
    }
  }
}

/// o += P V; P = s rounded to T.
template <class T, class S>
__device__ inline void accumulate(float (&o)[S::kTiles][S::D / 8][4], const float (&s)[S::kTiles][S::kKeys / 8][4],
                                  Tile<S::D> v) {
#pragma unroll
  for (int depth = 0; depth < S::kKeys / 16; depth++) {
    uint32_t a[S::kTiles][4];
#pragma unroll
    for (int t = 0; t < S::kTiles; t++) {
      const float(&left)[4] = s[t][2 * depth], (&right)[4] = s[t][2 * depth + 1];
      a[t][0] = pack<T>(left[0], left[1]), a[t][1] = pack<T>(left[2], left[3]);
      a[t][2] = pack<T>(right[0], right[1]), a[t][3] = pack<T>(right[2], right[3]);
    }
#pragma unroll
    for (int n = 0; n < S::D / 16; n++) {
      uint32_t b[4];
      load_matrices_transposed(b, v.b_fragments_from_rows(16 * depth, n));
#pragma unroll
      for (int t = 0; t < S::kTiles; t++) mma<T>(o[t][2 * n], a[t], b[0], b[1]), mma<T>(o[t][2 * n + 1], a[t], b[2], b[3]);
    }
  }
}

template <class S, class Variant>
__device__ inline void mask_scores(const Variant& variant, float (&s)[S::kTiles][S::kKeys / 8][4], const Sequence& sequence,
                                   int row0, int key0) {
  const int g = (threadIdx.x & 31) / 4, pair = 2 * (threadIdx.x & 3);
#pragma unroll
  for (int t = 0; t < S::kTiles; t++)
#pragma unroll
    for (int n = 0; n < S::kKeys / 8; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const int j = key0 + 8 * n + pair + c % 2;
        if (!sequence.sees(row0 + 16 * t + g + 8 * (c / 2), j)) s[t][n][c] = variant.hidden_score(j, sequence.lk);
      }
}

/// O = o / sum, LSE = max * scale + ln sum; a row that saw no key: O = 0, LSE = -inf.
template <class T, class S, class Variant>
__device__ inline void write_rows(const Variant& variant, const ForwardArgs<T>& args, SoftmaxRows<S>& rows,
                                  const Sequence& sequence, const Place& place, int row0) {
  const int head = place.head;
  const int g = (threadIdx.x & 31) / 4, pair = 2 * (threadIdx.x & 3);
#pragma unroll
  for (int t = 0; t < S::kTiles; t++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int i = row0 + 16 * t + g + 8 * half;
      const float sum = row_sum_of(rows.sum[t][half]);
      if (i >= sequence.lq) continue;
      const bool empty = !(sum > 0);
      const float inverse = empty ? 0.f : 1.f / sum;
      const int64_t token = sequence.q_begin + i;
      T* o = args.o + token * args.o_token + head * args.o_head + pair;
      const auto output = [&](float x) { return variant.template output<T>(x * inverse, place, token, args.hq, args.mask); };
      if (variant.writes_row(place, token, args.hq, args.mask)) {
#pragma unroll
        for (int n = 0; n < S::D / 8; n++)
          *reinterpret_cast<uint32_t*>(o + 8 * n) = pack<T>(output(rows.o[t][n][2 * half]), output(rows.o[t][n][2 * half + 1]));
      }
      if (pair == 0)
        args.lse[token * args.hq + head] =
            empty ? -INFINITY : variant.template lse<T>(rows.max[t][half], variant.score_scale(args.scale), sum);
    }
}

template <class T, class S, class Variant>
__global__ __launch_bounds__(S::kThreads) void forward_kernel(const ForwardArgs<T> args, const Variant variant) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int head = blockIdx.y, first_query = (gridDim.x - 1 - blockIdx.x) * S::kQueries;
  const Sequence sequence = variant.sequence(args.mask, blockIdx.z);
  if (first_query >= sequence.lq) return;
  const int end_query = min(first_query + S::kQueries, sequence.lq);
  const Tile<S::D> q{shared_address(shared)}, k{q.base + S::kQueries * S::D * 2}, v{k.base + S::kKeys * S::D * 2};
  const T* q_rows = args.q + sequence.q_begin * args.q_token + head * args.q_head;
  const T* k_rows = args.k + sequence.k_begin * args.k_token + variant.key_head(head, args.hq, args.group) * args.k_head;
  const T* v_rows = args.v + sequence.k_begin * args.v_token + variant.key_head(head, args.hq, args.group) * args.v_head;
  const Keys loaded = variant.loaded({sequence.seen_begin(), sequence.seen_end()}, sequence.lk);
  const auto copy_keys = [&](Tile<S::D> tile, const T* rows, int64_t stride, int key0) {
    copy_tile_async<S::kKeys, S::D, S::kThreads>(tile, rows, stride, key0, loaded.begin, loaded.end);
    commit_copies();
  };

  const Place whole{static_cast<int>(blockIdx.z), head};
  const int end_key = sequence.end_key(end_query - 1), begin_key = sequence.first_key(first_query) / S::kKeys * S::kKeys;
  const auto [begin, end] = variant.visited({begin_key, end_key}, whole, args.hq, sequence.lk);
  const int row0 = first_query + threadIdx.x / 32 * S::kRows;
  SoftmaxRows<S> rows;
  if (begin < end) {
    copy_tile_async<S::kQueries, S::D, S::kThreads>(q, q_rows, args.q_token, first_query, 0, sequence.lq);
    copy_keys(k, k_rows, args.k_token, begin);
  }
  for (int key0 = begin; key0 < end; key0 += S::kKeys) {
    const Place place{whole.sequence, head, first_query, key0};
    wait_copies<0>();
    __syncthreads();  // K (and Q) have arrived; everybody has left the last V
    variant.template keys_arrived<S>(k, place, sequence.lk);
    copy_keys(v, v_rows, args.v_token, key0);
    float s[S::kTiles][S::kKeys / 8][4];
    scores<T, S>(variant, s, q, k, row0 - first_query);
    variant.template scores_computed<T>(s);
    __syncthreads();  // everybody has left K
    if (key0 + S::kKeys < end) {
      copy_keys(k, k_rows, args.k_token, key0 + S::kKeys);
    } else {
      commit_copies();  // an empty group, so that one group is always newer than V
    }
    if (!sequence.all_seen(row0, row0 + S::kRows, key0, key0 + S::kKeys)) mask_scores<S>(variant, s, sequence, row0, key0);
    rows.template update<T>(variant, s, variant.score_scale(args.scale) * variant.log2e());
    variant.template probabilities_computed<T>(s);
    wait_copies<1>();
    __syncthreads();  // V has arrived
    variant.template values_arrived<S>(v, place, args.hq, sequence.lk);
    accumulate<T, S>(rows.o, s, v);
    variant.template output_accumulated<T>(rows.o);
  }
  write_rows<T, S>(variant, args, rows, sequence, whole, row0);
}

}  // namespace attnbench::flash_varlen::sm80
