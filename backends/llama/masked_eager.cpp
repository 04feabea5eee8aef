#include "backends/llama/masked_eager.hpp"

#include <cmath>

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>

#include "backends/attention/eager.hpp"

namespace attnbench {

at::Tensor decoder_mask(const at::Tensor& real, int64_t s, at::ScalarType dtype) {
  const auto options = real.options().dtype(dtype);
  const int64_t b = real.size(0), skv = real.size(1);
  const at::Tensor padding = at::zeros({b, 1, s, skv}, options).masked_fill(~real.view({b, 1, 1, skv}), lowest(dtype));
  if (s == 1) return padding;
  return padding + at::full({s, skv}, lowest(dtype), options).triu(skv - s + 1);
}

EagerResult attend_eagerly(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& mask) {
  const at::Tensor scores = at::matmul(q.transpose(1, 2), k.permute({0, 2, 3, 1})) / std::sqrt(static_cast<double>(q.size(3)));
  const at::Tensor masked = mask.defined() ? (scores + mask).clamp_min(lowest(q.scalar_type())) : scores;
  const at::Tensor weights = at::softmax(masked, -1, at::kFloat).to(q.scalar_type());
  return {at::matmul(weights, v.transpose(1, 2)).transpose(1, 2), weights};
}

}  // namespace attnbench
