// Eager attention of a layer with the 4-D additive mask that transformers' LlamaModel makes.
#pragma once

#include <ATen/core/Tensor.h>

namespace attnbench {

/// 0 or below, [b, 1, s, skv] in `dtype`: the lowest finite number where a key lies behind the query (with one query alone the
/// model leaves that part out), plus the same where `real`, bool [b, skv], is false.
at::Tensor decoder_mask(const at::Tensor& real, int64_t s, at::ScalarType dtype);

struct EagerResult {
  at::Tensor o;        ///< [b, s, h, d]
  at::Tensor weights;  ///< [b, h, s, skv]
};
/// q [b, s, h, d], k and v [b, skv, h, d]: Q K^T / sqrt(d) in their dtype, plus the mask (undefined: none), at least the lowest
/// finite number, softmax in float32, rounded. A query that sees no key has the mean of V over all of them.
EagerResult attend_eagerly(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& mask);

}  // namespace attnbench
