// What is true of cuDNN's attention in LibTorch, dense or packed.
#pragma once

#include <string>

#include "harness/run/declaration.hpp"

namespace attnbench {

/// "2.11.0 cudnn 9.19.0": LibTorch's and that of the library that is loaded; on a CPU LibTorch's alone.
std::string cudnn_version(const Device& device);

/// 256 on SM 9.0, else 128: what LibTorch's dispatcher lets pass (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).
int64_t cudnn_max_head_dim(const Device& device);

}  // namespace attnbench
