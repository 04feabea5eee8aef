#include "kernels/cpu/planted.hpp"

#include "kernels/cpu/backward.hpp"
#include "kernels/cpu/forward.hpp"

namespace attnbench::flash_varlen {

void forward_cpu_planted(Defect defect, const Forward& args, void* workspace, int workers, const ParallelFor& parallel) {
  cpu::run_forward(cpu::Planted(defect, args.shape.type), args, workspace, workers, parallel);
}

void backward_cpu_planted(Defect defect, const Backward& args, void* workspace, int workers, const ParallelFor& parallel) {
  cpu::run_backward(cpu::Planted(defect, args.shape.type), args, workspace, workers, parallel);
}

}  // namespace attnbench::flash_varlen
