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
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace attnbench {

/// own: a token's place in its row, past and padding counted, [b, s]; one_row: the same, [1, s] for all rows; from_mask: as
/// transformers' generate() makes them, the real tokens of its row that stand before it, and 1 where the mask hides it, [b, s];
/// none: no RoPE.
enum class PositionIds { own, one_row, from_mask, none };

/// Of what is float32 beside states of another dtype, or would be.
enum class PartDtype { same, fp32 };

/// An RMSNorm of the states before the projections: none, or one whose weight has such a dtype.
enum class InputNorm { none, same, fp32 };

/// What a training script cast to the states' dtype before the layer ran: nothing, norms (FastChat), norms and adapters
/// (FlagEmbedding).
enum class CastParts { none, norms, norms_and_adapters };

/// What runs in a layer whose attention can be switched.
enum class Implementation { original, patched };

/// What was done to a model, or to the class that it is of, before its layer ran, in turn.
enum class SwitchStep {
  enable_class,         ///< the patch is asked for without a model
  enable_instance,      ///< … for the model
  enable_layer,         ///< … for the layer of the model that runs
  enable_other_layer,   ///< … for another layer of it
  disable_class,        ///< the patch is taken back without a model
  disable_instance,     ///< … for the model
  disable_layer,        ///< … for the layer of the model that runs
  disable_other_layer,  ///< … for another layer of it
  lora_wrap,            ///< the model is wrapped for adapters, in a class of another name
  reimport,             ///< the class is looked up anew in its module
  new_instance          ///< the model is one made now, of the class as it was looked up last
};
std::string_view name_of(SwitchStep);

/// Where the layer believes to run. Empty: it asks nothing of that kind, so that a case means the same on every machine.
struct AssumedPlace {
  std::optional<int> sm;   ///< 86 = SM 8.6
  std::string flash_attn;  ///< version, as in 2.0.9
  std::string torch;       ///< version, as in 1.13; empty: that of LibTorch
  bool operator==(const AssumedPlace&) const = default;
};

struct LlamaLayer {
  int64_t past = 0;       ///< tokens before, whose rotated keys and values are given
  bool mask = false;      ///< a mask of the real tokens, bool [b, past + s], is given to the layer
  int64_t mask_keys = 0;  ///< keys of the 4-D mask that the model makes for the layer; 0: past + s, as it should have
  int64_t chunks = 1;     ///< the s tokens come in so many calls, each with the cache of those before
  bool cache = false;     ///< use_cache: keys and values of all tokens are returned, and judged
  bool weights = false;   ///< output_attentions: the probabilities are returned, and judged
  bool train = true;      ///< false: evaluation mode, in which some patches take another path
  PositionIds positions = PositionIds::own;
  int64_t shift = 0;      ///< added to every position id
  bool pad_dout = false;  ///< the gradient of the output is not 0 on padded rows
  double gain = 1;        ///< factor of the hidden states
  InputNorm norm = InputNorm::none;
  bool qk_norm = false;                    ///< an RMSNorm of q and one of k, over the channels of all heads, before RoPE
  int64_t lora = 0;                        ///< rank of low-rank adapters beside the projections of q and v; 0: none
  PartDtype lora_dtype = PartDtype::same;  ///< of those adapters
  CastParts cast = CastParts::none;
  bool int8 = false;  ///< weights of the four projections are int8, with a scale for each output channel
  std::vector<SwitchStep> switching;
  std::optional<Implementation> runs;  ///< what is meant to run, where that can be switched
  AssumedPlace assume;
  bool operator==(const LlamaLayer&) const = default;
};

/// Where a mechanism computes something else than the case asks for, on purpose to be shown: what that is, to be judged too.
struct Semantics {
  bool key_mask = true;        ///< padded keys are hidden
  bool causal = true;          ///< unless the case says causal=off
  bool top_left = false;       ///< the causal triangle starts at the first key, whatever the past
  bool uniform_rows = false;   ///< a query that sees no key has the mean of V over all keys, else 0
  bool weights = true;         ///< the probabilities are returned where the case asks for them
  bool fp16_overflow = false;  ///< a product q.k above 65504, hidden or not, makes its query NaN; below -65504 it hides
  bool casts_back = false;     ///< float32 q, k and v are cast to the case's dtype before attention, which out has then too
  std::optional<Implementation> runs = {};  ///< it is this that runs
  bool operator==(const Semantics&) const = default;
};

}  // namespace attnbench
