// What a layer over an attention backend declares: what that backend can do, as far as the layer hands it on.
#pragma once

#include <string>

#include "harness/run/declaration.hpp"

namespace attnbench {

/// A causal layer of padded hidden states that unpads, calls `attention` and pads: its padded rows are exactly 0. Devices,
/// dtypes, head dims, passes, implementation and profile are those of `attention`; there is no LSE.
Declaration declare_layer(std::string name, const Declaration& attention);

/// Throws where the case has fewer key heads than query heads: the layer projects both to as many.
void require_equal_heads(const Declaration& layer, const Case& c);

}  // namespace attnbench
