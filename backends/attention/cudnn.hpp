// What is true of cuDNN's attention in LibTorch, dense or packed.
#pragma once

#include <string>

#include "harness/run/declaration.hpp"

namespace attnbench {

/// "2.11.0 cudnn 9.19.0": LibTorch's and that of the library that is loaded; on a CPU LibTorch's alone.
std::string cudnn_version(const Device& device);

/// 256 on SM 9.0, else 128: what LibTorch's dispatcher lets pass (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).
int64_t cudnn_max_head_dim(const Device& device);

/// cuDNN's kernel: as FlashAttention, but its backward stores softmax_scale dS (cudnn-frontend,
/// scaled_dot_product_flash_attention.h: mul_dS_attn_scale stands before the cast to the dtype of Q).
/// It shares the calibration of FlashAttention, by its name.
Profile cudnn_profile();

}  // namespace attnbench
