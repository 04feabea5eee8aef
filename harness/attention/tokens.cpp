#include "harness/attention/tokens.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace attnbench {

namespace {

template <typename T>
std::vector<double> gather(const at::Tensor& dense, const std::vector<int64_t>& rows, int64_t row_size) {
  const T* data = dense.const_data_ptr<T>();
  std::vector<double> tokens(rows.size() * row_size);
  for (size_t t = 0; t < rows.size(); ++t) {
    const T* row = data + rows[t] * row_size;
    for (int64_t x = 0; x < row_size; ++x) tokens[t * row_size + x] = static_cast<double>(row[x]);
  }
  return tokens;
}

}  // namespace

std::vector<double> tokens_of(const at::Tensor& tensor, const std::vector<int64_t>& rows, int64_t heads, int64_t channels) {
  const at::Tensor dense = tensor.detach().to(at::kCPU).contiguous();
  const int64_t row_size = heads * channels;
  switch (dense.scalar_type()) {
    case at::kBFloat16:
      return gather<at::BFloat16>(dense, rows, row_size);
    case at::kHalf:
      return gather<at::Half>(dense, rows, row_size);
    case at::kFloat:
      return gather<float>(dense, rows, row_size);
    case at::kDouble:
      return gather<double>(dense, rows, row_size);
    default:
      throw std::invalid_argument(std::string("tokens of a tensor of dtype ") + c10::toString(dense.scalar_type()) +
                                  ", expected bf16, fp16, fp32 or fp64");
  }
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
