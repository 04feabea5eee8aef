// Rows of tensors in stretches that are worked on at once: on a CPU short ones, side by side, on a GPU long ones, of several
// tensors together, because there each operation takes its launch however little it works on.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

namespace attnbench {

/// Neighbouring rows of one of several tensors.
struct RowPart {
  size_t tensor = 0;
  int64_t first = 0, rows = 0;
};

/// Parts that have the same number of channels, in the order of the tensors and their rows.
struct RowStretch {
  std::vector<RowPart> parts;

  /// Their rows of `all`, which has a tensor [rows, …] for each of those that were cut into stretches.
  at::Tensor of(const std::vector<at::Tensor>& all) const;
  /// [parts, …]: what `answer` says about `rows` rows from `first` on, for each part. They are rows of the stretch.
  at::Tensor by_parts(const std::function<at::Tensor(int64_t first, int64_t rows)>& answer) const;
};

/// How tensors [rows, channels] are cut: stretches of so many elements; together: of neighbours with as many channels too.
std::vector<RowStretch> row_stretches(const std::vector<at::Tensor>& tensors, int64_t elements, bool together);

/// What `measure` (float64 [parts, …]) says about stretches of tensors [rows, channels] on one device: of each tensor
/// [parts, …] on the CPU; [0, 0] of one without rows.
std::vector<at::Tensor> by_stretches(const std::vector<at::Tensor>& tensors,
                                     const std::function<at::Tensor(const RowStretch&)>& measure);

}  // namespace attnbench
