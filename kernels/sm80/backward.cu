// Chooses the tiles of the backward.
#include "kernels/sm80/run_backward.cuh"

namespace attnbench::flash_varlen {
namespace {

using namespace sm80;

/// The first of the shapes, widest first, that fits.
template <class T, class Wide, class Narrow>
void launch_widest(const Backward& b, const CudaLaunch& launch, float* workspace) {
  const int limit = shared_memory_limit(launch);
  if (Wide::kSharedBytes <= limit) return launch_backward<T, Wide>(Sound{}, b, launch, workspace);
  if (Narrow::kSharedBytes <= limit) return launch_backward<T, Narrow>(Sound{}, b, launch, workspace);
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
  check_arguments(b, launch);
  if (b.shape.sequences == 0) return;
  b.shape.type == Type::bf16 ? launch_type<Bfloat>(b, launch, static_cast<float*>(workspace))
                             : launch_type<Half>(b, launch, static_cast<float*>(workspace));
}

}  // namespace attnbench::flash_varlen
