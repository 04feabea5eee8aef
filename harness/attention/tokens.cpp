#include "harness/attention/tokens.hpp"

#include <stdexcept>
#include <string>

#include <ATen/ops/tensor.h>

namespace attnbench {

at::Tensor to_tensor(const std::vector<int64_t>& numbers, c10::Device device) {
  // Memory that is not pinned is read before the call returns, so that there is nothing to wait for.
  return at::tensor(at::ArrayRef<int64_t>(numbers), at::kLong).to(device, at::kLong, /*non_blocking=*/true);
}

at::Tensor rows_of(const at::Tensor& tensor, const std::vector<int64_t>& rows, int64_t heads, int64_t channels) {
  const at::ScalarType dtype = tensor.scalar_type();
  if (dtype != at::kBFloat16 && dtype != at::kHalf && dtype != at::kFloat && dtype != at::kDouble)
    throw std::invalid_argument(std::string("tokens of a tensor of dtype ") + c10::toString(dtype) +
                                ", expected bf16, fp16, fp32 or fp64");
  return tensor.detach().reshape({-1, heads, channels}).index_select(0, to_tensor(rows, tensor.device()));
}

at::Tensor tokens_of(const at::Tensor& tensor, const std::vector<int64_t>& rows, int64_t heads, int64_t channels) {
  return rows_of(tensor, rows, heads, channels).to(at::kDouble);
}

std::vector<int64_t> offsets_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> offsets{0};
  for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

}  // namespace attnbench
