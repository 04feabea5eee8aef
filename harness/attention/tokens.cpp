#include "harness/attention/tokens.hpp"

#include <algorithm>

namespace attnbench {

std::vector<double> tokens_of(const at::Tensor& tensor, const std::vector<int64_t>& rows, int64_t heads, int64_t channels) {
  const at::Tensor dense = tensor.detach().to(at::kCPU).to(at::kDouble).contiguous();
  const double* data = dense.const_data_ptr<double>();
  const int64_t row_size = heads * channels;
  std::vector<double> tokens(rows.size() * row_size);
  for (size_t t = 0; t < rows.size(); ++t) std::copy_n(data + rows[t] * row_size, row_size, tokens.data() + t * row_size);
  return tokens;
}

std::vector<double> head_of(const std::vector<double>& tokens, int64_t first, int64_t count, int64_t heads, int64_t head,
                            int64_t channels) {
  std::vector<double> rows(count * channels);
  for (int64_t t = 0; t < count; ++t)
    std::copy_n(tokens.data() + ((first + t) * heads + head) * channels, channels, rows.data() + t * channels);
  return rows;
}

std::vector<int64_t> offsets_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> offsets{0};
  for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

}  // namespace attnbench
