// Rows of real tokens, and the batch with padding around them.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

namespace attnbench {

/// Places in [b s] of the real tokens of rows of these lengths, at the left of s columns; int64 on `device`.
at::Tensor places_of_tokens(const std::vector<int64_t>& lengths, int64_t s, c10::Device device);

/// [b, s, …] -> [tokens, …]
at::Tensor rows_of_tokens(const at::Tensor& padded, const at::Tensor& places);

/// [tokens, …] -> [b, s, …], zeros elsewhere
at::Tensor padded_rows(const at::Tensor& tokens, const at::Tensor& places, int64_t b, int64_t s);

}  // namespace attnbench
