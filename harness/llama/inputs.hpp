// The tensors of one case of the operation `llama`: hidden states, weights, masks, position ids, cache.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "harness/run/case.hpp"

namespace attnbench {

/// E = hq d. All in the case's dtype but masks and ids; values are bit-identical for any thread count (counter-based, as those of
/// `attention`).
struct LlamaInputs {
  at::Tensor hidden;          ///< [b, s, E]; layout=packed: [1, tokens, E]
  at::Tensor wq, wk, wv, wo;  ///< [hq d, E], [hkv d, E], [hkv d, E], [E, hq d]: y = x w^T
  at::Tensor past_k, past_v;  ///< [b, hkv, past, d]: keys are rotated already; undefined without a past
  at::Tensor mask;            ///< bool [b, past + s], true: a real token; undefined: the layer gets none
  at::Tensor position_ids;    ///< int64 [b or 1, s]
  at::Tensor cu_seqlens;      ///< int32 [samples + 1], the tail a sample of its own; layout=packed only
  at::Tensor dout;            ///< [b, s, E]; 0 on padded rows, unless the case says pad_dout=on

  /// Which new tokens are real, bool [b, s]: all where there is no mask.
  at::Tensor real_queries() const;
};

/// Drawn on the CPU: hidden states and dO normal (hidden times `gain`), weights normal / sqrt(E), the past normal. Padded rows
/// hold numbers like any other.
LlamaInputs make_llama_inputs(const Case& c);

LlamaInputs to_device(const LlamaInputs& inputs, c10::Device device);

/// What a layer computed; undefined tensors were not asked for.
struct LlamaOutputs {
  at::Tensor out;               ///< [b, s, E]
  at::Tensor cache_k, cache_v;  ///< [b, hkv, past + s, d]
  at::Tensor weights;           ///< [b, hq, s, past + s]
  at::Tensor dhidden;           ///< as hidden
  at::Tensor dwq, dwk, dwv, dwo;
  std::optional<Implementation> ran;  ///< where that can be switched
  std::vector<std::string> warnings;  ///< sentences that the original prints
};

}  // namespace attnbench
