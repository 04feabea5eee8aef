// Tensors held against each other bit by bit, where they are.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "harness/attention/inputs.hpp"

namespace attnbench {

/// Sizes, dtype and bits: a NaN equals the same NaN, and 0 is not -0. Two undefined tensors are the same.
bool same_bits(const at::Tensor& a, const at::Tensor& b);
bool same_bits(const Outputs& a, const Outputs& b);

/// Of each pair: are sizes and dtype the same, and each element by its value or its bits, so that 0 is -0 and a NaN the same NaN?
/// All are waited for once.
std::vector<bool> same_values(const std::vector<std::pair<at::Tensor, at::Tensor>>& pairs);

/// How the bits of two tensors differ.
struct BitDifference {
  int64_t elements = 0;  ///< that differ
  int64_t first = 0;     ///< of these, counted through the contiguous tensor
  double a = 0, b = 0;   ///< values there
  double max_ulp = 0;    ///< largest distance in representable numbers of the dtype; infinity: one side is not finite
};

/// Of tensors of equal sizes and dtype (bf16, fp16 or fp32), on one device. Empty: there is no difference.
std::optional<BitDifference> bit_difference(const at::Tensor& a, const at::Tensor& b);

}  // namespace attnbench
