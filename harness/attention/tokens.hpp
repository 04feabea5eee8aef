// From a case's layout to its real tokens.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

namespace attnbench {

/// The rows of `tensor` [… rows …, heads, channels] as [row, heads, channels], contiguous, of the same dtype and on the same
/// device; any strides. `rows` counts storage rows, all leading dimensions flattened. Throws std::invalid_argument for a dtype
/// other than bf16, fp16, fp32 or fp64.
at::Tensor rows_of(const at::Tensor& tensor, const std::vector<int64_t>& rows, int64_t heads, int64_t channels);

/// The same in float64.
at::Tensor tokens_of(const at::Tensor& tensor, const std::vector<int64_t>& rows, int64_t heads, int64_t channels);

/// What lies on the CPU, on the device (on a CPU itself). Nobody waits: it is read before the call returns, and copied from
/// there.
at::Tensor uploaded(const at::Tensor& tensor, c10::Device device);

/// int64 or float64 [numbers.size()], uploaded.
at::Tensor to_tensor(const std::vector<int64_t>& numbers, c10::Device device);
at::Tensor to_tensor(const std::vector<double>& numbers, c10::Device device);

/// Each of them, in one upload.
std::vector<at::Tensor> to_tensors(const std::vector<std::vector<int64_t>>& numbers, c10::Device device);

/// Tensors of zeros in one piece of memory, contiguous each.
std::vector<at::Tensor> zeros_together(const std::vector<std::vector<int64_t>>& sizes, const at::TensorOptions& options);

/// The rows of float64 [rows, numbers], each ascending, where they are.
at::Tensor sorted_rows(const at::Tensor& numbers);

/// Of contiguous float64 numbers; null where the tensor is undefined.
inline double* data_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<double>() : nullptr;
}

/// Prefix sums, lengths.size() + 1 of them.
std::vector<int64_t> offsets_of(const std::vector<int64_t>& lengths);

}  // namespace attnbench
