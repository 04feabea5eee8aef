#include "harness/worker/heat_map.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

namespace attnbench {
namespace {

int64_t ceil_divide(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// Heads are joined before sequences are, and tokens by powers of two, so that cells end where tiles do.
HeatMap grid_of(const std::vector<int64_t>& offsets, int64_t heads) {
  HeatMap map;
  const int64_t sequences = int64_t(offsets.size()) - 1;
  int64_t longest = 0;
  for (int64_t n = 0; n < sequences; ++n) longest = std::max(longest, offsets[size_t(n) + 1] - offsets[size_t(n)]);
  while (map.heads_per_row < heads && sequences * ceil_divide(heads, map.heads_per_row) > kMostMapRows) ++map.heads_per_row;
  if (map.heads_per_row >= heads) map.sequences_per_row = std::max<int64_t>(1, ceil_divide(sequences, kMostMapRows));
  while (ceil_divide(longest, map.tokens_per_column) > kMostMapColumns) map.tokens_per_column *= 2;
  const int64_t rows = ceil_divide(sequences, map.sequences_per_row) * ceil_divide(heads, map.heads_per_row);
  map.cells.assign(size_t(rows), std::vector<double>(size_t(ceil_divide(longest, map.tokens_per_column)), 0));
  return map;
}

HeatMap map_of(const std::vector<double>& sums, const std::vector<int64_t>& offsets, int64_t heads, int64_t channels,
               const std::function<double(double mean)>& cell_of) {
  HeatMap map = grid_of(offsets, heads);
  const int64_t row_groups = ceil_divide(heads, map.heads_per_row);
  std::vector<std::vector<double>> elements = map.cells;
  for (int64_t n = 0; n + 1 < int64_t(offsets.size()); ++n)
    for (int64_t token = offsets[size_t(n)]; token < offsets[size_t(n) + 1]; ++token)
      for (int64_t head = 0; head < heads; ++head) {
        const auto row = size_t(n / map.sequences_per_row * row_groups + head / map.heads_per_row);
        const auto column = size_t((token - offsets[size_t(n)]) / map.tokens_per_column);
        map.cells[row][column] += sums[size_t(token * heads + head)];
        elements[row][column] += double(channels);
      }
  for (size_t row = 0; row < map.cells.size(); ++row)
    for (size_t column = 0; column < map.cells[row].size(); ++column) {
      const double count = elements[row][column];
      map.cells[row][column] = count > 0 ? cell_of(map.cells[row][column] / count) : -1;
    }
  return map;
}

}  // namespace

HeatMap bad_map(const std::vector<double>& sums, const std::vector<int64_t>& offsets, int64_t heads, int64_t channels) {
  HeatMap map = map_of(sums, offsets, heads, channels, [](double mean) { return std::ceil(100 * mean); });
  map.measure = "percent_bad";
  return map;
}

HeatMap rms_map(const std::vector<double>& sums, const std::vector<int64_t>& offsets, int64_t heads, int64_t channels) {
  HeatMap map = map_of(sums, offsets, heads, channels, [](double mean) { return std::round(100 * std::sqrt(mean)) / 100; });
  map.measure = "rms_z";
  return map;
}

}  // namespace attnbench
