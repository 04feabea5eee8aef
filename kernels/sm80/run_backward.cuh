// Launches the three kernels of the backward.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels/sm80/backward.cuh"
#include "kernels/sm80/launch.cuh"

namespace attnbench::flash_varlen::sm80 {

template <class T>
BackwardArgs<T> arguments(const Backward& b, const CudaLaunch& launch, float* workspace) {
  const int64_t rows = launch.total_q * b.shape.hq;
  return {
      .q = static_cast<const T*>(b.q.data),
      .k = static_cast<const T*>(b.k.data),
      .v = static_cast<const T*>(b.v.data),
      .o = static_cast<const T*>(b.o.data),
      .dout = static_cast<const T*>(b.dout.data),
      .lse = b.lse,
      .row_sums = workspace + rows * b.shape.d,
      .dq_sums = workspace,
      .dq = static_cast<T*>(b.dq.data),
      .dk = static_cast<T*>(b.dk.data),
      .dv = static_cast<T*>(b.dv.data),
      .q_token = b.q.token_stride,
      .q_head = b.q.head_stride,
      .k_token = b.k.token_stride,
      .k_head = b.k.head_stride,
      .v_token = b.v.token_stride,
      .v_head = b.v.head_stride,
      .o_token = b.o.token_stride,
      .o_head = b.o.head_stride,
      .dout_token = b.dout.token_stride,
      .dout_head = b.dout.head_stride,
      .dq_token = b.dq.token_stride,
      .dq_head = b.dq.head_stride,
      .dk_token = b.dk.token_stride,
      .dk_head = b.dk.head_stride,
      .dv_token = b.dv.token_stride,
      .dv_head = b.dv.head_stride,
      .hq = static_cast<int>(b.shape.hq),
      .group = static_cast<int>(b.shape.hq / b.shape.hkv),
      .total_q = launch.total_q,
      .scale = b.shape.scale,
      .mask = mask_of(b.shape),
  };
}

template <class T, class S, class Variant>
void launch_backward(const Variant& variant, const Backward& b, const CudaLaunch& launch, float* workspace) {
  BackwardArgs<T> args = arguments<T>(b, launch, workspace);
  const auto stream = static_cast<cudaStream_t>(launch.stream);
  const int64_t rows = launch.total_q * b.shape.hq;
  constexpr int kThreads = 256;
  if (rows > 0) {
    check(cudaMemsetAsync(args.dq_sums, 0, rows * S::D * sizeof(float), stream), "zeroing of the dQ accumulator");
    launch_checked(row_sums_kernel<T, S::D, Variant>, dim3((rows + kThreads / 32 - 1) / (kThreads / 32)), kThreads, 0, stream,
                   args, variant, "row sums kernel");
  }
  if (launch.max_k > 0) {
    const int64_t key_blocks = (launch.max_k + S::kKeys - 1) / S::kKeys, pairs = b.shape.hkv * b.shape.sequences;
    if (key_blocks * pairs > std::numeric_limits<int32_t>::max()) refuse("takes at most 2^31 - 1 blocks of keys");
    args.key_blocks = static_cast<int>(key_blocks);
    args.pairs = static_cast<int>(pairs);
    args.pairs_of_section = static_cast<int>(std::min((2 * multiprocessors() + key_blocks - 1) / key_blocks, pairs));
    launch_checked(backward_kernel<T, S, Variant>, dim3(key_blocks * pairs), S::kThreads, S::kSharedBytes, stream, args, variant,
                   "backward kernel");
  }
  if (rows > 0)
    launch_checked(convert_dq_kernel<T, S::D, Variant>, dim3((rows * (S::D / 2) + kThreads - 1) / kThreads), kThreads, 0, stream,
                   args, variant, "dQ conversion kernel");
}

inline void check_arguments(const Backward& b, const CudaLaunch& launch) {
  check_shape(b.shape, launch);
  check_rows(b.q, "q"), check_rows(b.k, "k"), check_rows(b.v, "v"), check_rows(b.o, "o"), check_rows(b.dout, "dout");
  check_rows(b.dq, "dq"), check_rows(b.dk, "dk"), check_rows(b.dv, "dv");
}

}  // namespace attnbench::flash_varlen::sm80
