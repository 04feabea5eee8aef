// Attention as Hugging Face's LLaMA writes it out, up to the versions that have one class for it: every intermediate in the dtype
// of the states but the softmax, which is float32.
#pragma once

#include <ATen/core/Tensor.h>

namespace attnbench {

/// What the model's mask hook hands to such a layer: [b, 1, lq, lk], 0 where a query sees a key, else finfo(dtype).min, added
/// once for padding and once for causality, so that -inf stands where both hide. keys: bool [b, lk], true: a real token; the
/// queries are the last lq of them.
at::Tensor additive_mask(const at::Tensor& keys, int64_t lq, at::ScalarType dtype);

struct EagerAttention {
  at::Tensor o;        ///< [b, lq, hq, d]
  at::Tensor weights;  ///< [b, hq, lq, lk], in the dtype of the states
};

/// Scores plus mask are clamped at finfo(dtype).min: a query that sees no key weighs all of them alike.
/// q [b, hq, lq, d]; k, v [b, hkv, lk, d]; mask [b, 1, lq, lk]: another shape is a std::invalid_argument; undefined: none.
EagerAttention eager_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& mask);

}  // namespace attnbench
