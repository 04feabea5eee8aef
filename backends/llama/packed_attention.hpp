// Self-attention of padded rows as the packed-QKV patches do it: stacked, unpadded, one call over the real tokens, padded again.
#pragma once

#include "backends/llama/attention_call.hpp"
#include "backends/llama/layer.hpp"

namespace attnbench {

/// x: as many key heads as query heads. mask: bool [b, s], true: a real token; undefined: all are. Causal.
/// o [b, s, heads, d], 0 on padded rows.
at::Tensor packed_attention(const Backend& attention, const Projected& x, const at::Tensor& mask, Align align);

}  // namespace attnbench
