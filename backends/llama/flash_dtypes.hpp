// The dtypes that flash-attn takes. What stands in its place here may take more, so that the layers which call it have to refuse.
#pragma once

#include <ATen/core/Tensor.h>

namespace attnbench {

/// Throws std::invalid_argument with a sentence where one of them is float32.
void require_flash_dtypes(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

}  // namespace attnbench
