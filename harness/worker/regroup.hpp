// Sequences of one case as another case: fewer of them, in another order, or in the other layout, with the same values.
#pragma once

#include <cstdint>
#include <vector>

#include "harness/attention/inputs.hpp"

namespace attnbench {

struct Regrouped {
  Case c;                                 ///< explicit lengths; padding on the right
  Inputs inputs;                          ///< on the device of the original ones; what nobody may read holds the poison
  std::vector<int64_t> q_ranks, k_ranks;  ///< of its tokens, in order, among those of the original
};

/// sequences: which, in this order. c, inputs: the original; its strides are kept.
Regrouped regroup(const Case& c, const Inputs& inputs, const std::vector<int64_t>& sequences, Layout layout,
                  Conventions::Poison poison, const Device& device);

}  // namespace attnbench
