#include "kernels/sm80/planted.cuh"
#include "kernels/sm80/run_forward.cuh"
#include "kernels/sm80/tiling.hpp"

namespace attnbench::flash_varlen {

static_assert(sm80::ForwardDim64::kQueries == sm80::kForwardQueryBlock && sm80::ForwardDim64::kKeys == sm80::kForwardKeyBlock);
static_assert(sm80::ForwardDim128::kQueries == sm80::kForwardQueryBlock && sm80::ForwardDim128::kKeys == sm80::kForwardKeyBlock);

void forward_cuda_planted(Defect defect, const Forward& f, const CudaLaunch& launch) {
  sm80::run_forward(sm80::Planted(defect, f.shape.sequences), f, launch);
}

}  // namespace attnbench::flash_varlen
