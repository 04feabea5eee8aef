#include "harness/training/padding.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

namespace attnbench {

at::Tensor places_of_tokens(const std::vector<int64_t>& lengths, int64_t s, c10::Device device) {
  std::vector<int64_t> places;
  for (size_t n = 0; n < lengths.size(); ++n)
    for (int64_t i = 0; i < lengths[n]; ++i) places.push_back(static_cast<int64_t>(n) * s + i);
  return at::tensor(places, at::kLong).to(device);
}

at::Tensor rows_of_tokens(const at::Tensor& padded, const at::Tensor& places) {
  return padded.flatten(0, 1).index_select(0, places);
}

at::Tensor padded_rows(const at::Tensor& tokens, const at::Tensor& places, int64_t b, int64_t s) {
  std::vector<int64_t> sizes = tokens.sizes().vec();
  sizes[0] = b * s;
  return at::zeros(sizes, tokens.options().requires_grad(false)).index_copy(0, places, tokens).unflatten(0, {b, s});
}

}  // namespace attnbench
