// Attention of padded tensors through packed sequences: unpad -> attend -> pad.
#pragma once

#include "backends/llama/attention_call.hpp"

namespace attnbench {

/// What a layer has in one tensor when it calls attention, which gets views of it: nothing, [tokens, 2, hkv, d], or
/// [tokens, 3, h, d].
enum class Stacked { none, kv, qkv };

struct PaddedCall {
  at::Tensor q;     ///< [b, s, hq, d]
  at::Tensor k, v;  ///< [b, skv, hkv, d], skv >= s
  at::Tensor mask;  ///< bool [b, skv], true: a real token; the queries are the last s. Undefined: every token is real
  Stacked stacked = Stacked::none;
  bool causal = true;
  Align align = Align::bottom_right;
};

/// [b, s, hq, d]; rows of padded queries are exactly 0, and what gradient comes in there is dropped.
at::Tensor attend_padded(const Backend& attention, const PaddedCall& call);

}  // namespace attnbench
