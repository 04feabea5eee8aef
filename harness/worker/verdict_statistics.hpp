// Errors of tensors against their expected values, in units of the error model's sigma. Everything per element happens where
// the tensors are; only sums come to the host.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "harness/attention/reference.hpp"
#include "harness/run/record.hpp"
#include "harness/worker/row_errors.hpp"

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
  double signal = 0;      ///< RMS(x64 / sigma)
  double allowance = 0;   ///< RMS(b / sigma)
  double gain = 0;        ///< sum(err x64 / sigma^2) / sum(x64^2 / sigma^2)
  double gain_error = 0;  ///< its standard deviation if each row's errors are fully coherent
  /// Where only outputs are rounded (verdict_gates.hpp): g', and by the error model e', f and q.
  double gain_beside_rounded = 0, inner_gain = 0, inner_gain_error = 0, gain_step = 0;
  /// (sum_r E_r)^2 / sum_r (E_r^2 / nu_r), E_r the sum of z^2 of a row and nu_r its freedom: of an emulator's errors n of the RMS
  /// gate. Rows with freedom 0 do not count.
  double samples = 0;
  std::optional<int64_t> first_bad, worst;
  double worst_got = 0, worst_expected = 0;  ///< of the worst element
};

/// Tokens and what they are compared with. Where there are several, all are on one device.
struct Compared {
  at::Tensor got;  ///< float64, on the device of `expected`, of the same shape
  const Expected* expected = nullptr;
  double z_limit = kInfinity;
};

/// Of each tensor; on a GPU in not many more operations than one takes. Rows with freedom 0 share one rounding: they have a z,
/// but no part in the gain. only_outputs_rounded: the gain beside round(x64) is measured too.
std::vector<ErrorStatistics> measure_errors(const std::vector<Compared>& tensors, Dtype dtype, bool only_outputs_rounded = false);

/// Which elements fail by themselves, [the same sizes], bool: not finite where the other is, not exactly 0 where the variance is,
/// or |z| > z_limit. Float64 tensors on one device.
at::Tensor bad_elements(const at::Tensor& got, const at::Tensor& value, const at::Tensor& variance, Dtype dtype, double z_limit);

/// Effective number of different values of each: 1 / the chance that two elements are the same but for sign and a power of two,
/// so that they round alike; infinity where a few thousand samples hold no such two. Elements that must be 0 do not count. At
/// least one tensor, all on one device.
std::vector<double> distinct_values(const std::vector<const Expected*>& tensors);

/// How the field's tests measure: the reference rounded to the dtype, one number for a tensor; infinity where one is not finite
/// and the other differs.
struct FieldErrors {
  double max_abs = 0;                ///< largest |got - round(x64)|
  std::vector<double> of_tolerance;  ///< of each tolerance: largest |got - round(x64)| / (absolute + relative |round(x64)|)
};
/// Of each tensor, its limit of z left aside; at most kMostTolerances.
std::vector<FieldErrors> field_errors(const std::vector<Compared>& tensors, Dtype dtype,
                                      const std::vector<Tolerance>& tolerances);

/// max abs and rel-L2 difference of float64 tokens a and b, relative to a; infinity where one is not finite and the other
/// differs. Of every two tensors, a before b: (0, 1), (0, 2), …, (1, 2), …
std::vector<Difference> differences_of(const std::vector<at::Tensor>& tokens);

}  // namespace attnbench
