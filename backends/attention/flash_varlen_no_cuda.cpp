// Builds without our CUDA kernels: no CUDA compiler was found, LibTorch is for CPUs alone, or a sanitizer is on.
#include <stdexcept>

#include "backends/attention/flash_varlen_cuda.hpp"

namespace attnbench {

std::string why_no_cuda_kernels() {
  return "this build has no CUDA kernels: it needs nvcc, a LibTorch for CUDA, and no sanitizer";
}

std::unique_ptr<VarlenOperation> make_flash_varlen_cuda(const Case&, const Inputs&, std::optional<flash_varlen::Defect>) {
  throw std::logic_error("flash_varlen: " + why_no_cuda_kernels());
}

}  // namespace attnbench
