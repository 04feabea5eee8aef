// Tensors as .npy files, which numpy.load reads (format version 1.0).
#pragma once

#include <filesystem>

#include <ATen/core/Tensor.h>

namespace attnbench {

/// Any shape, strides and device; bf16, which numpy does not know, as float32. Throws std::runtime_error with the file and the
/// reason if it cannot be written.
void write_npy(const std::filesystem::path& file, const at::Tensor& tensor);

}  // namespace attnbench
