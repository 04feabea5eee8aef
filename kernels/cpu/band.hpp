// Which keys a query sees: a band of the (query, key) matrix of one sequence. Query i sees key j where
// 0 <= j < lk and i + first <= j <= i + last. Every mask of flash_varlen.hpp is such a band, so that tiles to skip,
// tiles without a mask and the elements of a mask all follow from two numbers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/flash_varlen.hpp"

namespace attnbench::flash_varlen::cpu {

/// [begin, end); empty ranges have begin == end.
struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool empty() const { return begin == end; }
};

inline Range intersect(Range a, Range b) {
  const int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

struct Band {
  int64_t lq = 0, lk = 0;
  int64_t first = 0, last = 0;

  /// The keys that at least one of these queries sees (queries is not empty).
  Range keys_of(Range queries) const { return intersect({queries.begin + first, queries.end + last}, {0, lk}); }
  /// The queries that see at least one of these keys (keys is not empty).
  Range queries_of(Range keys) const { return intersect({keys.begin - last, keys.end - first}, {0, lq}); }
  /// Whether each of these queries sees each of these keys.
  bool all_visible(Range queries, Range keys) const {
    return queries.end - 1 + first <= keys.begin && keys.end - 1 <= queries.begin + last;
  }
};

inline Band band_of(const Shape& shape, int64_t lq, int64_t lk) {
  const int64_t offset = shape.bottom_right ? lk - lq : 0;
  const int64_t beyond = lq + lk;  // reaches past every key from every query
  const auto reach = [&](int64_t window) { return window < 0 ? beyond : std::min(window, beyond); };
  return {lq, lk, offset - reach(shape.window_left), offset + reach(shape.window_right)};
}

}  // namespace attnbench::flash_varlen::cpu
