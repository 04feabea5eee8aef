#include "harness/attention/tokens.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>

#include <ATen/TensorOperators.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/util/accumulate.h>

namespace attnbench {
namespace {

/// [storage rows, heads, channels] of a dtype that tokens may have.
at::Tensor storage_rows(const at::Tensor& tensor, int64_t heads, int64_t channels) {
  const at::ScalarType dtype = tensor.scalar_type();
  if (dtype != at::kBFloat16 && dtype != at::kHalf && dtype != at::kFloat && dtype != at::kDouble)
    throw std::invalid_argument(std::string("tokens of a tensor of dtype ") + c10::toString(dtype) +
                                ", expected bf16, fp16, fp32 or fp64");
  return tensor.detach().reshape({-1, heads, channels});
}

/// All rows in their order: there is nothing to look up.
bool are_all(const std::vector<int64_t>& rows, int64_t count) {
  if (static_cast<int64_t>(rows.size()) != count) return false;
  for (int64_t i = 0; i < count; ++i)
    if (rows[i] != i) return false;
  return true;
}

}  // namespace

at::Tensor uploaded(const at::Tensor& tensor, c10::Device device) {
  if (device.is_cpu()) return tensor;
  return tensor.pin_memory().to(device, tensor.scalar_type(), /*non_blocking=*/true);
}

at::Tensor to_tensor(const std::vector<int64_t>& numbers, c10::Device device) {
  return uploaded(at::tensor(at::ArrayRef<int64_t>(numbers), at::kLong), device);
}

at::Tensor to_tensor(const std::vector<double>& numbers, c10::Device device) {
  return uploaded(at::tensor(at::ArrayRef<double>(numbers), at::kDouble), device);
}

std::vector<at::Tensor> to_tensors(const std::vector<std::vector<int64_t>>& numbers, c10::Device device) {
  std::vector<int64_t> all;
  for (const std::vector<int64_t>& some : numbers) all.insert(all.end(), some.begin(), some.end());
  const at::Tensor together = to_tensor(all, device);
  std::vector<at::Tensor> tensors;
  int64_t first = 0;
  for (const std::vector<int64_t>& some : numbers) {
    const auto count = static_cast<int64_t>(some.size());
    tensors.push_back(together.narrow(0, first, count));
    first += count;
  }
  return tensors;
}

std::vector<at::Tensor> zeros_together(const std::vector<std::vector<int64_t>>& sizes, const at::TensorOptions& options) {
  int64_t elements = 0;
  for (const std::vector<int64_t>& size : sizes) elements += c10::multiply_integers(size);
  const at::Tensor together = at::zeros({elements}, options);
  std::vector<at::Tensor> tensors;
  int64_t first = 0;
  for (const std::vector<int64_t>& size : sizes) {
    tensors.push_back(together.narrow(0, first, c10::multiply_integers(size)).view(size));
    first += tensors.back().numel();
  }
  return tensors;
}

at::Tensor rows_of(const at::Tensor& tensor, const std::vector<int64_t>& rows, int64_t heads, int64_t channels) {
  const at::Tensor storage = storage_rows(tensor, heads, channels);
  if (are_all(rows, storage.size(0))) return storage.clone(at::MemoryFormat::Contiguous);
  return storage.index_select(0, to_tensor(rows, tensor.device()));
}

at::Tensor tokens_of(const at::Tensor& tensor, const std::vector<int64_t>& rows, int64_t heads, int64_t channels) {
  const at::Tensor storage = storage_rows(tensor, heads, channels);
  if (tensor.scalar_type() == at::kDouble || !are_all(rows, storage.size(0)))
    return rows_of(tensor, rows, heads, channels).to(at::kDouble);
  return storage.to(at::kDouble).contiguous();
}

at::Tensor sorted_rows(const at::Tensor& numbers) {
  if (!numbers.is_cpu()) return std::get<0>(numbers.sort());
  const at::Tensor sorted = numbers.clone(at::MemoryFormat::Contiguous);
  double* const data = sorted.mutable_data_ptr<double>();  // std::sort is twice as fast as LibTorch's, which moves indices too
  for (int64_t row = 0; row < sorted.size(0); ++row) std::sort(data + row * sorted.size(1), data + (row + 1) * sorted.size(1));
  return sorted;
}

std::vector<int64_t> offsets_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> offsets{0};
  for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

}  // namespace attnbench
