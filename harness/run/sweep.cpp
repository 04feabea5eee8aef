#include "harness/run/sweep.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "harness/run/case.hpp"

namespace attnbench {

int64_t count_sweep(const CaseText& text, int64_t limit) {
  int64_t count = 1;
  for (const Token& token : text.keys) {
    const auto values = static_cast<int64_t>(sweep_values(token).size());
    // Divided, not multiplied: the product of many long sweeps would overflow.
    if (values > limit / count)
      throw CaseError(
          fmt::format("{}: the sweeps of this line stand for more than {} cases; split it or sweep less", text.place, limit));
    count *= values;
  }
  return count;
}

int64_t longest_line(const CaseText& text) {
  const auto bytes = [](const Token& token) { return token.key.size() + token.value.size(); };
  size_t sum = text.operation.size();
  for (const Token& token : text.keys) {
    size_t longest = 0;
    for (const Token& value : sweep_values(token)) longest = std::max(longest, bytes(value));
    sum += longest;
  }
  for (const Token& token : text.metadata) sum += bytes(token);
  return static_cast<int64_t>(sum);
}

std::vector<CaseText> expand_sweep(const CaseText& text) {
  std::vector<CaseText> lines{{text.operation, text.place, {}, text.metadata}};
  for (const Token& token : text.keys) {
    const std::vector<Token> values = sweep_values(token);
    std::vector<CaseText> longer;
    longer.reserve(lines.size() * values.size());
    for (const CaseText& line : lines) {
      for (const Token& value : values) {
        longer.push_back(line);
        longer.back().keys.push_back(value);
      }
    }
    lines = std::move(longer);
  }
  return lines;
}

}  // namespace attnbench
