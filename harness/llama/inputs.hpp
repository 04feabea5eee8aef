// The tensors of one case of the operation `llama`: hidden states, weights, masks, position ids, cache.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "harness/run/case.hpp"

namespace attnbench {

/// Of a low-rank adapter: y = x w^T + kLoraScale (x a^T) b^T, which is alpha / rank.
inline constexpr double kLoraScale = 2;

/// Of every RMSNorm: weight x / sqrt(mean(x^2) + kNormEpsilon).
inline constexpr double kNormEpsilon = 1e-6;

/// E = hq d. All in the case's dtype but masks, ids, and what is said to be in another; values are bit-identical for any thread
/// count (counter-based, as those of `attention`). Tensors that the case does not ask for are undefined.
struct LlamaInputs {
  at::Tensor hidden;          ///< [b, s, E]; layout=packed: [1, tokens, E]; strides=transposed: stored as [b, E, s], as is dout
  at::Tensor wq, wk, wv, wo;  ///< [hq d, E], [hkv d, E], [hkv d, E], [E, hq d]: y = x w^T; int8=on: int8
  at::Tensor wq_scale, wk_scale, wv_scale, wo_scale;  ///< int8=on: of each output channel, [out]: w = int8 * scale
  at::Tensor norm;                                    ///< weight of the norm of the states, [E]; norm=fp32: float32
  at::Tensor q_norm, k_norm;                          ///< qk_norm=on: weights of those of q and k, [hq d] and [hkv d]
  at::Tensor lora_qa, lora_qb;  ///< lora=R: adapter of wq, a [R, E] and b [hq d, R]; lora_dtype=fp32: float32
  at::Tensor lora_va, lora_vb;  ///< of wv, [R, E] and [hkv d, R]
  at::Tensor past_k, past_v;    ///< [b, hkv, past, d]: keys are rotated already; undefined without a past
  at::Tensor mask;              ///< bool [b, past + s], true: a real token; undefined: the layer gets none
  at::Tensor position_ids;      ///< int64 [b or 1, s]; positions=none: undefined
  at::Tensor cu_seqlens;        ///< int32 [samples + 1], the tail a sample of its own; layout=packed only
  at::Tensor dout;              ///< [b, s, E]; 0 on padded rows, unless the case says pad_dout=on

  /// Which new tokens are real, bool [b, s]: all where there is no mask.
  at::Tensor real_queries() const;
};

/// Drawn on the CPU: hidden states and dO normal (hidden times `gain`), weights normal / sqrt(E), those of norms 1 + normal / 8,
/// a of an adapter normal / sqrt(E) and b normal / (2 sqrt(R)), the past normal. Padded rows hold numbers like any other. int8
/// weights are the nearest to those drawn, where 127 is the largest of their output channel.
LlamaInputs make_llama_inputs(const Case& c);

/// What a layer computed; undefined tensors were not asked for.
struct LlamaOutputs {
  at::Tensor out;               ///< [b, s, E]
  at::Tensor cache_k, cache_v;  ///< [b, hkv, past + s, d]
  at::Tensor weights;           ///< [b, hq, s, past + s]
  at::Tensor dhidden;           ///< as hidden
  at::Tensor dwq, dwk, dwv, dwo;
  at::Tensor dnorm, dq_norm, dk_norm;
  at::Tensor dlora_qa, dlora_qb, dlora_va, dlora_vb;
  std::optional<Implementation> ran;  ///< where that can be switched
  std::vector<std::string> warnings;  ///< sentences that the original prints
};

/// An input that has a gradient, where it is defined and not int8.
struct Differentiated {
  const char* gradient_name;
  at::Tensor LlamaInputs::*input;
  at::Tensor LlamaOutputs::*gradient;
};
inline constexpr Differentiated kDifferentiated[] = {{"dhidden", &LlamaInputs::hidden, &LlamaOutputs::dhidden},
                                                     {"dwq", &LlamaInputs::wq, &LlamaOutputs::dwq},
                                                     {"dwk", &LlamaInputs::wk, &LlamaOutputs::dwk},
                                                     {"dwv", &LlamaInputs::wv, &LlamaOutputs::dwv},
                                                     {"dwo", &LlamaInputs::wo, &LlamaOutputs::dwo},
                                                     {"dnorm", &LlamaInputs::norm, &LlamaOutputs::dnorm},
                                                     {"dq_norm", &LlamaInputs::q_norm, &LlamaOutputs::dq_norm},
                                                     {"dk_norm", &LlamaInputs::k_norm, &LlamaOutputs::dk_norm},
                                                     {"dlora_qa", &LlamaInputs::lora_qa, &LlamaOutputs::dlora_qa},
                                                     {"dlora_qb", &LlamaInputs::lora_qb, &LlamaOutputs::dlora_qb},
                                                     {"dlora_va", &LlamaInputs::lora_va, &LlamaOutputs::dlora_va},
                                                     {"dlora_vb", &LlamaInputs::lora_vb, &LlamaOutputs::dlora_vb}};
bool has_gradient(const at::Tensor& input);

}  // namespace attnbench
