// Rows of tensors in stretches that are worked on at once: on a CPU short ones, side by side, on a GPU long ones, of several
// tensors together, because there each operation takes its launch however little it works on.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

namespace attnbench {

/// Neighbouring rows of one of several tensors.
struct Part {
  size_t tensor = 0;
  int64_t first = 0, rows = 0;
};

/// Parts that have as many channels, in the order of the tensors and their rows.
struct Stretch {
  std::vector<Part> parts;

  int64_t rows() const;
  /// Their rows of `all`, one tensor [rows, …] for each that the stretch is made of.
  at::Tensor of(const std::vector<at::Tensor>& all) const;
  /// [parts, …]: what `answer` says about `rows` rows from `first` on, for each part. They are rows of the stretch.
  at::Tensor by_parts(const std::function<at::Tensor(int64_t first, int64_t rows)>& answer) const;
};

/// What `measure` (float64 [parts, …]) says about stretches of tensors [rows, channels] on one device: of each tensor
/// [parts, …] on the CPU; [0, 0] of one without rows.
std::vector<at::Tensor> by_stretches(const std::vector<at::Tensor>& tensors,
                                     const std::function<at::Tensor(const Stretch&)>& measure);

}  // namespace attnbench
