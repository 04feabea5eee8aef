// One call of an attention backend from inside a layer, as an operation that autograd knows: the door of `attention`
// (harness/worker/backend.hpp) with tensors of the layer in the place of drawn ones.
#pragma once

#include <optional>
#include <vector>

#include "harness/worker/backend.hpp"

namespace attnbench {

/// Packed sequences. Scale 1/sqrt(d).
struct AttentionCall {
  at::Tensor q, k, v;                         ///< [tokens, heads, d], may be views; may require gradients
  std::vector<int64_t> q_lengths, k_lengths;  ///< of each sequence
  bool causal = true;
  Align align = Align::bottom_right;
  std::optional<SlidingWindow> window = {};
};

/// o [query tokens, hq, d]. A backend that declares strides=transposed gets views as they are, another one copies without gaps.
/// Throws AttentionLacks with the backend's sentence where it does not take the call, std::invalid_argument where q, k and v are
/// not of one dtype.
at::Tensor attend(const Backend& attention, const AttentionCall& call);

}  // namespace attnbench
