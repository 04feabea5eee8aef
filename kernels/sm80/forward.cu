#include "kernels/sm80/run_forward.cuh"

namespace attnbench::flash_varlen {

void forward_cuda(const Forward& f, const CudaLaunch& launch) {
  sm80::run_forward(sm80::Sound{}, f, launch);
}

}  // namespace attnbench::flash_varlen
