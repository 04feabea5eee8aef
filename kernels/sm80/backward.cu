// Chooses the tiles of the backward and launches its three kernels.
#include "kernels/sm80/backward.cuh"

#include <algorithm>

#include "kernels/sm80/launch.cuh"

namespace attnbench::flash_varlen {
namespace {

using namespace sm80;

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

template <class T, class S>
void launch_tiles(const Backward& b, const CudaLaunch& launch, float* workspace) {
  BackwardArgs<T> args = arguments<T>(b, launch, workspace);
  const auto stream = static_cast<cudaStream_t>(launch.stream);
  const int64_t rows = launch.total_q * b.shape.hq;
  constexpr int kThreads = 256;
  if (rows > 0) {
    check(cudaMemsetAsync(args.dq_sums, 0, rows * S::D * sizeof(float), stream), "zeroing of the dQ accumulator");
    launch_checked(row_sums_kernel<T, S::D>, dim3((rows + kThreads / 32 - 1) / (kThreads / 32)), kThreads, 0, stream, args,
                   "row sums kernel");
  }
  if (launch.max_k > 0) {
    const int64_t key_blocks = (launch.max_k + S::kKeys - 1) / S::kKeys, pairs = b.shape.hkv * b.shape.sequences;
    if (key_blocks * pairs > std::numeric_limits<int32_t>::max()) refuse("takes at most 2^31 - 1 blocks of keys");
    args.key_blocks = static_cast<int>(key_blocks);
    args.pairs = static_cast<int>(pairs);
    args.pairs_of_section = static_cast<int>(std::min((2 * multiprocessors() + key_blocks - 1) / key_blocks, pairs));
    launch_checked(backward_kernel<T, S>, dim3(key_blocks * pairs), S::kThreads, S::kSharedBytes, stream, args,
                   "backward kernel");
  }
  if (rows > 0)
    launch_checked(convert_dq_kernel<T, S::D>, dim3((rows * (S::D / 2) + kThreads - 1) / kThreads), kThreads, 0, stream, args,
                   "dQ conversion kernel");
}

/// The first of the shapes, widest first, that fits.
template <class T, class Wide, class Narrow>
void launch_widest(const Backward& b, const CudaLaunch& launch, float* workspace) {
  const int limit = shared_memory_limit(launch);
  if (Wide::kSharedBytes <= limit) return launch_tiles<T, Wide>(b, launch, workspace);
  if (Narrow::kSharedBytes <= limit) return launch_tiles<T, Narrow>(b, launch, workspace);
  refuse("backward needs " + std::to_string(Narrow::kSharedBytes) + " bytes of shared memory a block, the limit is " +
         std::to_string(limit));
}

template <class T>
void launch_type(const Backward& b, const CudaLaunch& launch, float* workspace) {
  if (b.shape.d == 64) return launch_widest<T, BackwardShape<64, 8, 64, 2>, BackwardShape<64, 4, 64, 2>>(b, launch, workspace);
  launch_widest<T, BackwardShape<128, 8, 64, 2>, BackwardShape<128, 4, 64, 1>>(b, launch, workspace);
}

}  // namespace

size_t backward_cuda_workspace_bytes(const Shape& shape, const CudaLaunch& launch) {
  return static_cast<size_t>(launch.total_q) * shape.hq * (shape.d + 1) * sizeof(float);
}

void backward_cuda(const Backward& b, const CudaLaunch& launch, void* workspace) {
  check_shape(b.shape, launch);
  check_rows(b.q, "q"), check_rows(b.k, "k"), check_rows(b.v, "v"), check_rows(b.o, "o"), check_rows(b.dout, "dout");
  check_rows(b.dq, "dq"), check_rows(b.dk, "dk"), check_rows(b.dv, "dv");
  if (b.shape.sequences == 0) return;
  b.shape.type == Type::bf16 ? launch_type<Bfloat>(b, launch, static_cast<float*>(workspace))
                             : launch_type<Half>(b, launch, static_cast<float*>(workspace));
}

}  // namespace attnbench::flash_varlen
