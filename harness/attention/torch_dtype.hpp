// A case's dtype as LibTorch names it.
#pragma once

#include <c10/core/ScalarType.h>

#include "harness/run/problem.hpp"

namespace attnbench {

inline at::ScalarType torch_dtype(Dtype dtype) {
  return dtype == Dtype::bf16 ? at::kBFloat16 : dtype == Dtype::fp16 ? at::kHalf : at::kFloat;
}

}  // namespace attnbench
