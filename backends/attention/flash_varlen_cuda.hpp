// The project's CUDA kernels as an operation; in builds that have none, the reason.
#pragma once

#include <optional>
#include <string>

#include "backends/attention/varlen.hpp"
#include "kernels/defects.hpp"

namespace attnbench {

/// A sentence; empty: this build has the kernels.
std::string why_no_cuda_kernels();

/// `inputs` on the GPU; launched on LibTorch's current stream; with the defect, if there is one.
std::unique_ptr<VarlenOperation> make_flash_varlen_cuda(const Case& c, const Inputs& inputs,
                                                        std::optional<flash_varlen::Defect> planted);

}  // namespace attnbench
