#include "kernels/cpu/backward.hpp"

namespace attnbench::flash_varlen {

size_t backward_cpu_workspace_bytes(const Shape& shape, int workers) {
  cpu::check_shape(shape, workers);
  cpu::Arena arena;
  cpu::Shared(arena, shape);
  for (int worker = 0; worker < workers; ++worker) cpu::BackwardTiles(arena, shape.d);
  return arena.used();
}

void backward_cpu(const Backward& args, void* workspace, int workers, const ParallelFor& parallel) {
  cpu::run_backward(cpu::Sound{}, args, workspace, workers, parallel);
}

}  // namespace attnbench::flash_varlen
