// What is true of LibTorch's kernels behind scaled_dot_product_attention that run on a CPU, whoever calls them; fused_cuda.hpp
// says it of those that run on a GPU alone.
#pragma once

#include <vector>

#include "backends/attention/dense.hpp"

namespace attnbench {

/// Float32 inside: halves are converted first, D comes from P o dP, only outputs are rounded.
Profile sdpa_math_profile();

/// P is rounded unnormalised, dS before its products, D comes from the rounded O. On a CPU dQ, dK and dV accumulate in the
/// dtype over blocks of keys and queries, which no profile excuses.
Profile sdpa_flash_profile();

/// A query without keys gets zeros, and so do padded queries; NaN in hidden keys is multiplied by 0 and leaks.
Conventions sdpa_conventions();

/// Predicted peaks of both, outputs included.
int64_t sdpa_math_bytes(const std::vector<DenseCall>& calls, const Inputs& inputs, Pass pass);
int64_t sdpa_flash_bytes(const std::vector<DenseCall>& calls, const Inputs& inputs, Pass pass);

}  // namespace attnbench
