#include "kernels/cpu/forward.hpp"

namespace attnbench::flash_varlen {

size_t forward_cpu_workspace_bytes(const Shape& shape, int workers) {
  cpu::check_shape(shape, workers);
  cpu::Arena arena;
  for (int worker = 0; worker < workers; ++worker) cpu::ForwardTiles(arena, shape.d);
  return arena.used();
}

void forward_cpu(const Forward& args, void* workspace, int workers, const ParallelFor& parallel) {
  cpu::run_forward(cpu::Sound{}, args, workspace, workers, parallel);
}

}  // namespace attnbench::flash_varlen
