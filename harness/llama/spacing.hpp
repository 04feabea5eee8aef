// Spacing of a dtype at every element of a tensor.
#pragma once

#include <ATen/core/Tensor.h>

#include "harness/attention/error_model.hpp"

namespace attnbench {

/// ulp(x) of each element of float64 x: the exponent's bits alone are the power of two at or below |x|.
inline at::Tensor spacing(Dtype dtype, const at::Tensor& x) {
  const at::Tensor power = x.contiguous().view(at::kLong).bitwise_and(int64_t(0x7ff) << 52).view(at::kDouble);
  return power.mul(ulp(dtype, 1)).clamp_min_(ulp(dtype, 0));
}

}  // namespace attnbench
