// Of each head dim the widest tiles that fit every device: one set of kernels for all defects, whatever the GPU.
#include "kernels/sm80/planted.cuh"
#include "kernels/sm80/run_backward.cuh"
#include "kernels/sm80/tiling.hpp"

namespace attnbench::flash_varlen {
namespace {

using namespace sm80;

using Dim64 = BackwardShape<64, 8, 64, 2>;
using Dim128 = BackwardShape<128, 4, 64, 1>;
static_assert(Dim64::kQueries == kBackwardQueryBlock && Dim64::kKeys == planted_backward_key_block(64));
static_assert(Dim128::kQueries == kBackwardQueryBlock && Dim128::kKeys == planted_backward_key_block(128));

template <class T>
void run_planted(const Planted& variant, const Backward& b, const CudaLaunch& launch, float* workspace) {
  b.shape.d == 64 ? launch_backward<T, Dim64>(variant, b, launch, workspace)
                  : launch_backward<T, Dim128>(variant, b, launch, workspace);
}

}  // namespace

void backward_cuda_planted(Defect defect, const Backward& sound, const CudaLaunch& launch, void* workspace) {
  Backward b = sound;
  if (defect == Defect::dout_strides_ignored) b.dout.token_stride = b.shape.hq * b.shape.d, b.dout.head_stride = b.shape.d;
  check_arguments(b, launch);
  if (b.shape.sequences == 0) return;
  const Planted variant(defect, b.shape.sequences);
  b.shape.type == Type::bf16 ? run_planted<Bfloat>(variant, b, launch, static_cast<float*>(workspace))
                             : run_planted<Half>(variant, b, launch, static_cast<float*>(workspace));
}

}  // namespace attnbench::flash_varlen
