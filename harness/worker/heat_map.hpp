// A coarse map of a tensor's errors, small enough for a record and a terminal.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/run/tensor_failure.hpp"

namespace attnbench {

inline constexpr int64_t kMostMapRows = 16, kMostMapColumns = 32;

/// sums: [token][head], over the channels of each row: bad elements, or squares of z. offsets: prefix sums of the sequences'
/// lengths. At most 16 rows of 32 columns.
HeatMap bad_map(const std::vector<double>& sums, const std::vector<int64_t>& offsets, int64_t heads, int64_t channels);
HeatMap rms_map(const std::vector<double>& sums, const std::vector<int64_t>& offsets, int64_t heads, int64_t channels);

}  // namespace attnbench
