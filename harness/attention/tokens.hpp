// From a case's layout to its real tokens, and head by head.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

namespace attnbench {

/// Float64 copy on the CPU of the rows of `tensor` [… rows …, heads, channels] in any strides: [row][head][channel].
/// `rows` counts storage rows, all leading dimensions flattened.
std::vector<double> tokens_of(const at::Tensor& tensor, const std::vector<int64_t>& rows, int64_t heads, int64_t channels);

/// Rows of one head out of [row][heads][channels].
std::vector<double> head_of(const std::vector<double>& tokens, int64_t first, int64_t count, int64_t heads, int64_t head,
                            int64_t channels);

/// Prefix sums, lengths.size() + 1 of them.
std::vector<int64_t> offsets_of(const std::vector<int64_t>& lengths);

}  // namespace attnbench
