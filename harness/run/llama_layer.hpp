// What the operation `llama` adds to a case: the attention layer of a LLaMA around an attention problem. Plain data.
//
// Hidden states [b, s, hq d] -> projections to q [b, s, hq, d], k and v [b, s, hkv, d] -> RoPE of q and k by position ids -> keys
// and values of `past` earlier tokens before them -> attention -> output projection. The case's `problem` is that attention:
// lq = s new tokens, lk = past + s, lens the real tokens of each row among past + s, pad where the others stand; softmax scale
// 1/sqrt(d). layout=packed: one row of hidden states, lens the samples in it, and `tail` tokens behind them, a sample of their
// own; position ids restart with each.
// RoPE (Su et al. 2021; half-split form): x cos + (-x2, x1) sin with the angles p / 10000^(2 i / d), i = 0 … d/2 - 1, twice;
// cos and sin in the dtype of the states.
#pragma once

#include <cstdint>

namespace attnbench {

enum class PositionIds { own, one_row };  ///< [b, s], or [1, s] for all rows

struct LlamaLayer {
  int64_t past = 0;      ///< tokens before, whose rotated keys and values are given
  bool mask = false;     ///< a mask of the real tokens, bool [b, past + s], is given to the layer
  int64_t chunks = 1;    ///< the s tokens come in so many calls, each with the cache of those before
  bool cache = false;    ///< use_cache: keys and values of all tokens are returned, and judged
  bool weights = false;  ///< output_attentions: the probabilities are returned, and judged
  bool train = true;     ///< false: evaluation mode, in which some patches take another path
  PositionIds positions = PositionIds::own;
  int64_t shift = 0;      ///< added to every position id
  bool pad_dout = false;  ///< the gradient of the output is not 0 on padded rows
  double gain = 1;        ///< factor of the hidden states
  bool operator==(const LlamaLayer&) const = default;
};

/// Where a mechanism computes something else than the case asks for, on purpose to be shown: what that is, to be judged too.
struct Semantics {
  bool key_mask = true;       ///< padded keys are hidden
  bool causal = true;         ///< unless the case says causal=off
  bool top_left = false;      ///< the causal triangle starts at the first key, whatever the past
  bool uniform_rows = false;  ///< a query that sees no key has the mean of V over all keys, else 0
  bool operator==(const Semantics&) const = default;
};

}  // namespace attnbench
