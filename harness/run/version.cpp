#include "harness/run/version.hpp"

#include <charconv>
#include <cstdint>
#include <limits>
#include <vector>

namespace attnbench {
namespace {

std::vector<uint64_t> numbers_of(std::string_view version) {
  std::vector<uint64_t> numbers;
  const char *at = version.data(), *end = at + version.size();
  for (uint64_t number = 0;;) {
    const auto [next, error] = std::from_chars(at, end, number);
    if (error != std::errc{}) break;
    numbers.push_back(number);
    if (next == end || *next != '.') break;
    at = next + 1;
  }
  if (numbers.empty()) numbers.push_back(std::numeric_limits<uint64_t>::max());
  while (numbers.size() > 1 && numbers.back() == 0) numbers.pop_back();
  return numbers;
}

}  // namespace

int compare_versions(std::string_view a, std::string_view b) {
  const auto order = numbers_of(a) <=> numbers_of(b);
  return order < 0 ? -1 : order > 0 ? 1 : 0;
}

}  // namespace attnbench
