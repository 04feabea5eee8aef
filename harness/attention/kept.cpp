#include "harness/attention/kept.hpp"

#include <numeric>

#include "harness/attention/tokens.hpp"

namespace attnbench {
namespace {

/// Where the keys of sequence n stand among the columns.
std::vector<int64_t> columns_of(const Inputs& inputs, int64_t n, int64_t first_key) {
  const int64_t keys = inputs.lengths.k[n], pitch = inputs.lengths.k_pitch;
  std::vector<int64_t> columns(keys);
  if (pitch == 0) {
    std::iota(columns.begin(), columns.end(), 0);
    return columns;
  }
  std::vector<bool> is_real(pitch, false);
  for (int64_t j = 0; j < keys; ++j) is_real[columns[j] = inputs.k_rows[first_key + j] - n * pitch] = true;
  for (int64_t column = 0; column < pitch; ++column)
    if (!is_real[column]) columns.push_back(column);
  return columns;
}

}  // namespace

std::vector<int64_t> sizes_of_kept(const Inputs& inputs) {
  std::vector<int64_t> sizes = inputs.q.sizes().vec();
  sizes.back() = inputs.lengths.k_pitch > 0 ? inputs.lengths.k_pitch : inputs.lengths.max_k();
  return sizes;
}

at::Tensor kept_of_sequence(const Inputs& inputs, int64_t n) {
  const auto first = [n](const std::vector<int64_t>& lengths) {
    return std::accumulate(lengths.begin(), lengths.begin() + n, int64_t(0));
  };
  const auto rows = inputs.q_rows.begin() + first(inputs.lengths.q);
  const c10::Device device = inputs.kept.device();
  return inputs.kept.flatten(0, -3)
      .index_select(0, to_tensor(std::vector<int64_t>{rows, rows + inputs.lengths.q[n]}, device))
      .index_select(2, to_tensor(columns_of(inputs, n, first(inputs.lengths.k)), device))
      .transpose(0, 1);
}

}  // namespace attnbench
