// Errors of one tensor against its expected values, in units of the error model's sigma.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "harness/attention/reference.hpp"

namespace attnbench {

/// The real tokens of a tensor: [token][head][channel], tokens of all sequences one after the other.
struct TokenShape {
  std::vector<int64_t> offsets;  ///< prefix sums of the sequences' lengths
  int64_t heads = 0, channels = 0;

  int64_t elements() const { return offsets.back() * heads * channels; }
  Element element(int64_t index) const;
};

/// z = (got - expected) / sigma. Elements whose expected variance is 0 are 0 by the mask and compared exactly;
/// non-finite ones must match in place and kind; neither has a z.
struct ErrorStatistics {
  int64_t elements = 0;        ///< that have a z
  int64_t exact_elements = 0;  ///< that are 0 by the mask
  int64_t exact_violations = 0;
  int64_t nonfinite_mismatches = 0;
  int64_t beyond_limit = 0;  ///< |z| > z_limit
  double max_abs = 0, rel_l2 = 0, cosine = 1;
  double max_z = 0, rms_z = 0;
  double signal = 0;               ///< RMS(x64 / sigma)
  double allowance = 0;            ///< RMS(b / sigma)
  double gain = 0;                 ///< sum(err x64 / sigma^2) / sum(x64^2 / sigma^2)
  double gain_error = 0;           ///< its standard deviation if each row's errors are fully coherent
  std::vector<double> row_energy;  ///< sum of z^2 of each (token, head)
  std::optional<int64_t> first_bad, worst;
};

/// Rows with freedom 0 share one rounding: they have a z, but no part in the gain.
ErrorStatistics measure_errors(const std::vector<double>& got, const Expected& expected, const TokenShape& shape, Dtype dtype,
                               double z_limit);

/// n of the RMS gate: rows weighted by the emulator's energy, `freedom` error sources each.
double effective_samples(const std::vector<double>& row_energy, const std::vector<double>& freedom);

/// Largest |got - round(expected)|, the reference rounded to the dtype as the field does; infinity where one is not finite
/// and the other differs.
double field_error(const std::vector<double>& got, const Expected& expected, Dtype dtype);

}  // namespace attnbench
