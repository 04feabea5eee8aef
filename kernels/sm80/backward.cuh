// Backward of flash_varlen for SM 8.0 and later (mma.sync, cp.async). FlashAttention-2, algorithm 2 (arXiv 2307.08691).
//
//   P = exp(S - LSE), dV = P^T dO, dP = dO V^T, D_i = sum_x dO_ix O_ix, dS = P o (dP - D), dQ = scale dS K, dK = scale dS^T Q
// Three kernels: row_sums (D), backward_kernel, and convert_dq (dQ from its fp32 accumulator).
// backward_kernel: one block is kKeys keys of one key head of one sequence, in the order of key_block(). It walks over
// the query heads of its group and over the query blocks that see its keys; kWarps warps, each with 16 keys.
// Everything is computed transposed, so that P^T and dS^T leave the tensor cores as the A operand that the next product needs:
//   S^T = K Q^T, dP^T = V dO^T -> P^T, dS^T (registers) -> dV += P^T dO, dK += dS^T Q; dS^T through shared memory -> dQ = dS K,
// whose partial sums go to an fp32 accumulator in global memory by atomicAdd: dQ depends on the order of the blocks in its last
// bits; dK and dV do not.
// Shared memory: K, V [kKeys][D]; Q, dO [kStages][kQueries][D]; dS^T [kKeys][kQueries], 16-bit, swizzled;
// LSE, D [kStages][kQueries].
// Registers a thread: dK and dV D each, S^T and dP^T kQueries / 2 each.
//
// `variant` is asked wherever the self-test plants a defect: Sound (sound.cuh) answers with what is right and costs nothing.
#pragma once

#include <cmath>

#include "kernels/sm80/primitives.cuh"
#include "kernels/sm80/sound.cuh"
#include "kernels/sm80/visibility.cuh"

namespace attnbench::flash_varlen::sm80 {

template <class T>
struct BackwardArgs {
  const T *q, *k, *v, *o, *dout;
  const float* lse;  ///< [total_q, hq]
  float* row_sums;   ///< D, [total_q, hq]
  float* dq_sums;    ///< dQ / scale, [total_q, hq, D], zero at the start
  T *dq, *dk, *dv;
  int64_t q_token, q_head, k_token, k_head, v_token, v_head, o_token, o_head, dout_token, dout_head;
  int64_t dq_token, dq_head, dk_token, dk_head, dv_token, dv_head;  ///< strides in elements
  int hq, group;
  int key_blocks, pairs, pairs_of_section;  ///< of the longest sequence; key heads x sequences; of them together
  int64_t total_q;
  float scale;
  Mask mask;
};

template <int head_dim, int warps, int queries, int stages>
struct BackwardShape {
  static constexpr int D = head_dim, kWarps = warps, kKeys = 16 * warps, kQueries = queries, kStages = stages;
  static constexpr int kThreads = 32 * warps;
  static constexpr int kQueryWarps = queries / 16, kColumnWarps = warps / kQueryWarps;  ///< how the warps share dQ
  static constexpr int kTileBytes = kQueries * D * 2;
  static constexpr int kSharedBytes =
      2 * kKeys * D * 2 + 2 * kStages * kTileBytes + kKeys * kQueries * 2 + 2 * kStages * kQueries * 4;
  static_assert(queries == 64, "dS^T is stored in rows of 64");
  static_assert(kColumnWarps >= 1 && (D / kColumnWarps) % 16 == 0);
};

/// D = rowsum(dO o O): one warp a row.
template <class T, int D, class Variant>
__global__ void row_sums_kernel(const BackwardArgs<T> args, const Variant variant) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= args.total_q * args.hq) return;
  const int64_t token = row / args.hq;
  const int head = row % args.hq, lane = threadIdx.x & 31;
  const T* o = args.o + token * args.o_token + head * args.o_head;
  const T* dout = args.dout + token * args.dout_token + head * args.dout_head;
  float sum = 0;
#pragma unroll
  for (int x = lane; x < D; x += 32) sum = variant.template add_product<T>(sum, to_float(o[x]), to_float(dout[x]));
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum = variant.template add_sums<T>(sum, __shfl_xor_sync(0xffffffffu, sum, step));
  if (lane == 0) args.row_sums[row] = variant.row_sum(sum);
}

/// dQ = scale * accumulator, rounded.
template <class T, int D, class Variant>
__global__ void convert_dq_kernel(const BackwardArgs<T> args, const Variant variant) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pair >= args.total_q * args.hq * (D / 2)) return;
  const int64_t row = pair / (D / 2), token = row / args.hq;
  const int head = row % args.hq, x = 2 * (pair % (D / 2));
  const float2 sum = *reinterpret_cast<const float2*>(args.dq_sums + row * D + x);
  *reinterpret_cast<uint32_t*>(args.dq + token * args.dq_token + head * args.dq_head + x) =
      pack<T>(variant.template dq<T>(sum.x, args.scale), variant.template dq<T>(sum.y, args.scale));
}

/// What one stage of the pipeline holds.
template <class S>
struct QueryStage {
  Tile<S::D> q, dout;
  float *lse, *row_sums;  ///< shared; lse in units of log2, +inf where the row does not exist or is empty
};

template <class T, class S, class Variant>
__device__ inline void load_queries(const Variant& variant, const BackwardArgs<T>& args, const QueryStage<S>& stage,
                                    const Sequence& sequence, int head, int query0) {
  const T* q = args.q + sequence.q_begin * args.q_token + head * args.q_head;
  const T* dout = args.dout + sequence.q_begin * args.dout_token + head * args.dout_head;
  copy_tile_async<S::kQueries, S::D, S::kThreads>(stage.q, q, args.q_token, query0, 0, sequence.lq);
  copy_tile_async<S::kQueries, S::D, S::kThreads>(stage.dout, dout, args.dout_token, query0, 0, sequence.lq);
  for (int i = threadIdx.x; i < S::kQueries; i += S::kThreads) {
    const bool valid = query0 + i < sequence.lq;
    const int64_t row = (sequence.q_begin + (valid ? query0 + i : 0)) * static_cast<int64_t>(args.hq) + head;
    const float lse = valid ? args.lse[row + variant.lse_row_offset(query0 + i) * args.hq] : INFINITY;
    stage.lse[i] = lse == -INFINITY ? INFINITY : lse * variant.backward_log2e();
    stage.row_sums[i] = valid ? args.row_sums[row + variant.row_sum_offset(query0 + i) * args.hq] : 0.f;
  }
}

/// c = A B^T for the warp's 16 rows of `a` and all rows of `b`.
template <class T, class S>
__device__ inline void product_transposed(float (&c)[S::kQueries / 8][4], Tile<S::D> a, Tile<S::D> b, int row0) {
#pragma unroll
  for (int n = 0; n < S::kQueries / 8; n++) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0;
#pragma unroll
  for (int depth = 0; depth < S::D / 16; depth++) {
    uint32_t fragment[4];
    load_matrices(fragment, a.a_fragment(row0, depth));
#pragma unroll
    for (int n = 0; n < S::kQueries / 16; n++) {
      uint32_t other[4];
      load_matrices(other, b.b_fragments(16 * n, depth));
      mma<T>(c[2 * n], fragment, other[0], other[1]);
      mma<T>(c[2 * n + 1], fragment, other[2], other[3]);
    }
  }
}

/// c += A B for a packed A (16 keys x kQueries) and the rows of `b`.
template <class T, class S>
__device__ inline void accumulate_keys(float (&c)[S::D / 8][4], const uint32_t (&a)[S::kQueries / 16][4], Tile<S::D> b) {
#pragma unroll
  for (int depth = 0; depth < S::kQueries / 16; depth++)
#pragma unroll
    for (int n = 0; n < S::D / 16; n++) {
      uint32_t fragment[4];
      load_matrices_transposed(fragment, b.b_fragments_from_rows(16 * depth, n));
      mma<T>(c[2 * n], a[depth], fragment[0], fragment[1]);
      mma<T>(c[2 * n + 1], a[depth], fragment[2], fragment[3]);
    }
}

/// s (S^T unscaled) becomes P^T and dp (dP^T) becomes dS^T, both in fp32.
template <class T, class S, class Variant>
__device__ inline void probabilities_and_ds(const Variant& variant, float (&s)[S::kQueries / 8][4],
                                            float (&dp)[S::kQueries / 8][4], const QueryStage<S>& stage, const Sequence& sequence,
                                            int key_row, int query0, bool masked, float scale_log2) {
  const int pair = 2 * (threadIdx.x & 3);
#pragma unroll
  for (int n = 0; n < S::kQueries / 8; n++) {
    const float2 lse = *reinterpret_cast<const float2*>(stage.lse + 8 * n + pair);
    const float2 row_sum = *reinterpret_cast<const float2*>(stage.row_sums + 8 * n + pair);
#pragma unroll
    for (int c = 0; c < 4; c++) {
      if (masked && !sequence.sees(query0 + 8 * n + pair + c % 2, key_row + 8 * (c / 2))) {
        s[n][c] = dp[n][c] = 0;
      } else {
        s[n][c] = exp2_approx(s[n][c] * scale_log2 - (c % 2 ? lse.y : lse.x));
        dp[n][c] = variant.template ds<T>(s[n][c], dp[n][c], c % 2 ? row_sum.y : row_sum.x);
      }
    }
  }
}

template <class T, class S>
__device__ inline void pack_keys(uint32_t (&packed)[S::kQueries / 16][4], const float (&x)[S::kQueries / 8][4]) {
#pragma unroll
  for (int n = 0; n < S::kQueries / 16; n++) {
    packed[n][0] = pack<T>(x[2 * n][0], x[2 * n][1]), packed[n][1] = pack<T>(x[2 * n][2], x[2 * n][3]);
    packed[n][2] = pack<T>(x[2 * n + 1][0], x[2 * n + 1][1]), packed[n][3] = pack<T>(x[2 * n + 1][2], x[2 * n + 1][3]);
  }
}

/// Packed dS^T of the warp's 16 keys to shared memory: rows are keys.
template <class S>
__device__ inline void store_ds(Tile<S::kQueries> tile, const uint32_t (&ds)[S::kQueries / 16][4], int row0) {
  const int g = (threadIdx.x & 31) / 4, offset = 4 * (threadIdx.x & 3);
#pragma unroll
  for (int n = 0; n < S::kQueries / 16; n++)
#pragma unroll
    for (int r = 0; r < 4; r++)
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(tile.at(row0 + g + 8 * (r % 2), 2 * n + r / 2) + offset), "r"(ds[n][r])
                   : "memory");
}

/// dQ of the block's queries += dS K: the warp's 16 queries and D / kColumnWarps channels, added in global memory.
template <class T, class S, class Variant>
__device__ inline void add_dq(const Variant& variant, const BackwardArgs<T>& args, Tile<S::kQueries> ds, Tile<S::D> k,
                              const Sequence& sequence, const Place& place) {
  const int head = place.head, query0 = place.query0;
  constexpr int kColumns = S::D / S::kColumnWarps;
  const int warp = threadIdx.x / 32, m = warp % S::kQueryWarps, column0 = warp / S::kQueryWarps * kColumns;
  float c[kColumns / 8][4] = {};
#pragma unroll
  for (int depth = 0; depth < S::kKeys / 16; depth++) {
    uint32_t a[4];
    load_matrices_transposed(a, ds.a_fragment_from_columns(m, 16 * depth));
#pragma unroll
    for (int n = 0; n < kColumns / 16; n++) {
      uint32_t b[4];
      load_matrices_transposed(b, k.b_fragments_from_rows(16 * depth, column0 / 16 + n));
      mma<T>(c[2 * n], a, b[0], b[1]);
      mma<T>(c[2 * n + 1], a, b[2], b[3]);
    }
  }
  const int g = (threadIdx.x & 31) / 4, pair = 2 * (threadIdx.x & 3);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = 16 * m + g + 8 * half, i = query0 + row;
    if (i >= sequence.lq) continue;
    float* sums = args.dq_sums + ((sequence.q_begin + i) * static_cast<int64_t>(args.hq) + head) * S::D + column0 + pair;
#pragma unroll
    for (int n = 0; n < kColumns / 8; n++) {
      const int x = column0 + pair + 8 * n;
      variant.template add_to_dq<T, S>(sums + 8 * n, c[n][2 * half], sequence, place, row, x);
      variant.template add_to_dq<T, S>(sums + 8 * n + 1, c[n][2 * half + 1], sequence, place, row, x + 1);
    }
  }
}

/// factor * x, rounded, to the rows of the warp's 16 keys.
template <class T, class S>
__device__ inline void write_keys(T* rows, int64_t token_stride, const float (&x)[S::D / 8][4], float factor, int key_row,
                                  int lk) {
  const int pair = 2 * (threadIdx.x & 3);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (key_row + 8 * half >= lk) continue;
    T* row = rows + (key_row + 8 * half) * token_stride + pair;
#pragma unroll
    for (int n = 0; n < S::D / 8; n++)
      *reinterpret_cast<uint32_t*>(row + 8 * n) = pack<T>(x[n][2 * half] * factor, x[n][2 * half + 1] * factor);
  }
}

/// The query blocks that see keys [key0, key0 + kKeys): [first, end) in units of kQueries. A key is seen by the queries i
/// with j - offset - right <= i <= j - offset + left.
template <class S>
__device__ inline void query_blocks(const Sequence& sequence, int key0, int& first, int& end) {
  const int last_key = min(key0 + S::kKeys, sequence.lk) - 1;
  const int begin_query = sequence.right < 0 ? 0 : max(0, key0 - sequence.offset - sequence.right);
  const int end_query =
      sequence.left < 0 ? sequence.lq : max(0, min(sequence.lq, last_key - sequence.offset + sequence.left + 1));
  first = begin_query / S::kQueries;
  end = (end_query + S::kQueries - 1) / S::kQueries;
}

struct KeyBlock {
  int index, head, sequence;
};

/// What this block computes. A section of (head, sequence) pairs holds about two waves of blocks; in it the first keys of all
/// pairs come first, since under a causal mask they are the longest work. More pairs at once would overflow the L2.
template <class T>
__device__ inline KeyBlock key_block(const BackwardArgs<T>& args) {
  const int whole_section = args.key_blocks * args.pairs_of_section;
  const int first_pair = blockIdx.x / whole_section * args.pairs_of_section, place = blockIdx.x % whole_section;
  const int pairs = min(args.pairs_of_section, args.pairs - first_pair), pair = first_pair + place % pairs,
            heads = args.hq / args.group;
  return {place / pairs, pair % heads, pair / heads};
}

template <class T, class S, class Variant>
__global__ __launch_bounds__(S::kThreads) void backward_kernel(const BackwardArgs<T> args, const Variant variant) {
  extern __shared__ __align__(128) unsigned char shared[];
  const KeyBlock block = key_block(args);
  const Sequence sequence = variant.backward_sequence(args.mask, block.sequence);
  const int key_head = block.head, key0 = block.index * S::kKeys;
  if (key0 >= sequence.lk) return;
  const Tile<S::D> k{shared_address(shared)}, v{k.base + S::kKeys * S::D * 2};
  const uint32_t stages = v.base + S::kKeys * S::D * 2;
  const Tile<S::kQueries> ds{stages + 2 * S::kStages * S::kTileBytes};
  float* rows = reinterpret_cast<float*>(shared + S::kSharedBytes - 2 * S::kStages * S::kQueries * 4);
  const auto stage = [&](int i) {
    return QueryStage<S>{{stages + 2 * i * S::kTileBytes},
                         {stages + (2 * i + 1) * S::kTileBytes},
                         rows + 2 * i * S::kQueries,
                         rows + (2 * i + 1) * S::kQueries};
  };

  int first, end;
  query_blocks<S>(sequence, key0, first, end);
  const int blocks = max(0, end - first), steps = blocks * args.group;  // step = head of the group, then query block
  const auto head_of = [&](int step) { return key_head * args.group + step / blocks; };
  const auto query_of = [&](int step) { return (first + step % blocks) * S::kQueries; };

  const int row0 = threadIdx.x / 32 * 16, key_row = key0 + row0 + (threadIdx.x & 31) / 4;
  float dk[S::D / 8][4] = {}, dv[S::D / 8][4] = {};
  if (steps > 0) {
    copy_tile_async<S::kKeys, S::D, S::kThreads>(k, args.k + sequence.k_begin * args.k_token + key_head * args.k_head,
                                                 args.k_token, key0, sequence.seen_begin(), sequence.seen_end());
    copy_tile_async<S::kKeys, S::D, S::kThreads>(v, args.v + sequence.k_begin * args.v_token + key_head * args.v_head,
                                                 args.v_token, key0, sequence.seen_begin(), sequence.seen_end());
    load_queries<T, S>(variant, args, stage(0), sequence, head_of(0), query_of(0));
    commit_copies();
  }
  for (int step = 0; step < steps; step++) {
    const int query0 = query_of(step), head = head_of(step);
    const Place place{block.sequence, head, query0, key0};
    const QueryStage<S> now = stage(step % S::kStages);
    wait_copies<0>();
    __syncthreads();  // this stage has arrived; everybody has left the other stage and dS
    if (S::kStages > 1 && step + 1 < steps) {
      load_queries<T, S>(variant, args, stage((step + 1) % S::kStages), sequence, head_of(step + 1), query_of(step + 1));
      commit_copies();
    }
    float s[S::kQueries / 8][4], dp[S::kQueries / 8][4];
    product_transposed<T, S>(s, k, now.q, row0);
    product_transposed<T, S>(dp, v, now.dout, row0);
    const bool masked = !sequence.all_seen(query0, query0 + S::kQueries, key0 + row0, key0 + row0 + 16);
    probabilities_and_ds<T, S>(variant, s, dp, now, sequence, key_row, query0, masked,
                               variant.score_scale(args.scale) * variant.backward_log2e());
    variant.template probabilities_for_dv<T>(s, sequence, place, args.group);
    uint32_t packed[S::kQueries / 16][4];
    pack_keys<T, S>(packed, s);
    accumulate_keys<T, S>(dv, packed, now.dout);
    variant.template keys_accumulated<T>(dv);
    pack_keys<T, S>(packed, dp);
    store_ds<S>(ds, packed, row0);
    variant.template ds_for_dk<T, S>(packed, sequence, place, args.group);
    accumulate_keys<T, S>(dk, packed, now.q);
    variant.template keys_accumulated<T>(dk);
    __syncthreads();  // dS is complete; with one stage, everybody has left Q and dO
    if (S::kStages == 1 && step + 1 < steps) {
      load_queries<T, S>(variant, args, stage(0), sequence, head_of(step + 1), query_of(step + 1));
      commit_copies();
    }
    add_dq<T, S>(variant, args, ds, k, sequence, place);
  }
  if (steps == 0 && !variant.writes_unseen_keys()) return;
  if (steps == 0) variant.unseen_keys(dk, key_row, min(key0 + S::kKeys, sequence.lk) - 1);
  write_keys<T, S>(args.dk + sequence.k_begin * args.dk_token + key_head * args.dk_head, args.dk_token, dk,
                   variant.dk_factor(args.scale), key_row, sequence.lk);
  write_keys<T, S>(args.dv + sequence.k_begin * args.dv_token + key_head * args.dv_head, args.dv_token, dv, variant.dv_factor(),
                   key_row, sequence.lk);
}

}  // namespace attnbench::flash_varlen::sm80
