// The mask of a dropout as a kernel handed it out (Outputs::kept), for those that replay it.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "harness/attention/inputs.hpp"

namespace attnbench {

/// Sizes of Outputs::kept: [total_q and tail, hq, longest keys] or [b, q_pitch, hq, k_pitch].
std::vector<int64_t> sizes_of_kept(const Inputs& inputs);

/// Of sequence n: bool [hq, queries, stored keys], on the device of inputs.kept. The real keys come first, those of a padded
/// row's padding follow, both in their order.
at::Tensor kept_of_sequence(const Inputs& inputs, int64_t n);

}  // namespace attnbench
