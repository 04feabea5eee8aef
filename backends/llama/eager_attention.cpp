#include "backends/llama/eager_attention.hpp"

#include <cmath>
#include <stdexcept>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/softmax.h>
#include <fmt/ranges.h>

#include "backends/attention/eager.hpp"

namespace attnbench {
namespace {

void check_shape(const at::Tensor& mask, const std::vector<int64_t>& wanted) {
  const at::IntArrayRef got = mask.sizes();
  if (got != at::IntArrayRef(wanted))
    throw std::invalid_argument(
        fmt::format("the attention mask has the shape [{}], expected [{}]", fmt::join(got, ", "), fmt::join(wanted, ", ")));
}

}  // namespace

at::Tensor additive_mask(const at::Tensor& keys, int64_t lq, at::ScalarType dtype) {
  const int64_t lk = keys.size(1);
  const at::Tensor places = at::arange(lk, keys.options().dtype(at::kLong));
  const at::Tensor later = places.unsqueeze(0) > places.narrow(0, lk - lq, lq).unsqueeze(1);  // [lq, lk]
  const at::Tensor padding = keys.logical_not().to(dtype) * lowest(dtype);
  return padding.unsqueeze(1).unsqueeze(1) + later.to(dtype) * lowest(dtype);
}

EagerAttention eager_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& mask) {
  if (mask.defined()) check_shape(mask, {q.size(0), 1, q.size(2), k.size(2)});
  const int64_t group = q.size(1) / k.size(1);
  const at::Tensor products = at::matmul(q, repeat_kv(k, group).transpose(2, 3)) / std::sqrt(static_cast<double>(q.size(3)));
  // The larger of two tensors, not a clamp: where they are equal the gradient is halved, as in the original.
  const at::Tensor lowest_score = at::scalar_tensor(lowest(q.scalar_type()), q.options());
  const at::Tensor scores = mask.defined() ? at::maximum(products + mask, lowest_score) : products;
  const at::Tensor weights = at::softmax(scores, -1, at::kFloat).to(q.scalar_type());
  return {at::matmul(weights, repeat_kv(v, group)).transpose(1, 2), weights};
}

}  // namespace attnbench
