#include "harness/worker/verdict_statistics.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness/attention/error_model.hpp"

namespace attnbench {
namespace {

/// Sums over all elements, from which the statistics follow.
struct Sums {
  double error2 = 0, got2 = 0, expected2 = 0, product = 0;
  double z2 = 0, gain = 0, signal2 = 0, gained_signal2 = 0, coherent2 = 0, allowance2 = 0;
};

enum class Kind { measured, same_nonfinite, mismatch };

/// A value so large that the dtype holds infinity instead.
bool overflows(Dtype dtype, double expected, double sigma) {
  return dtype == Dtype::fp16 && std::abs(expected) + 6.5 * sigma >= 65520;
}

Kind kind_of(double got, double expected, double variance, Dtype dtype) {
  if (std::isfinite(got) && std::isfinite(expected)) return Kind::measured;
  if (std::isnan(got) || std::isnan(expected))
    return std::isnan(got) && std::isnan(expected) ? Kind::same_nonfinite : Kind::mismatch;
  if (got == expected) return Kind::same_nonfinite;
  const bool rounded_up = std::isinf(got) && std::isfinite(expected) && std::signbit(got) == std::signbit(expected);
  return rounded_up && overflows(dtype, expected, std::sqrt(variance)) ? Kind::same_nonfinite : Kind::mismatch;
}

class Measurement {
 public:
  Measurement(const std::vector<double>& got, const Expected& expected, const TokenShape& shape, Dtype dtype, double z_limit)
      : got_(got), expected_(expected), shape_(shape), dtype_(dtype), z_limit_(z_limit) {}
  ErrorStatistics run();

 private:
  void row(int64_t row);
  bool count_exact(int64_t at);
  void mark_bad(int64_t at);

  const std::vector<double>& got_;
  const Expected& expected_;
  const TokenShape& shape_;
  const Dtype dtype_;
  const double z_limit_;
  Sums sums_;
  ErrorStatistics s_;
  bool worst_is_final_ = false;  ///< a mismatch outranks every z
};

void Measurement::mark_bad(int64_t at) {
  if (!s_.first_bad) s_.first_bad = at;
}

/// True where the element is no matter of z: not finite, or 0 by the mask.
bool Measurement::count_exact(int64_t at) {
  const double got = got_[at], expected = expected_.value[at], variance = expected_.variance[at];
  const Kind kind = kind_of(got, expected, variance, dtype_);
  const bool exact = variance == 0;
  if (exact) ++s_.exact_elements;
  const bool violated = exact && !(got == expected);
  if (violated) ++s_.exact_violations;
  if (kind == Kind::mismatch) ++s_.nonfinite_mismatches;
  if (violated || kind == Kind::mismatch) {
    mark_bad(at);
    if (!worst_is_final_) s_.worst = at;
    worst_is_final_ = true;
    s_.max_abs =
        std::max(s_.max_abs, kind == Kind::mismatch ? std::numeric_limits<double>::infinity() : std::abs(got - expected));
  }
  return exact || kind != Kind::measured;
}

void Measurement::row(int64_t row) {
  const bool has_gain = expected_.freedom.empty() || expected_.freedom[row] != 0;
  double coherent = 0, energy = 0;
  for (int64_t at = row * shape_.channels; at < (row + 1) * shape_.channels; ++at) {
    if (count_exact(at)) continue;
    const double x = expected_.value[at], error = got_[at] - x, inverse = 1 / expected_.variance[at];
    const double z2 = error * error * inverse;
    ++s_.elements;
    sums_.error2 += error * error;
    sums_.got2 += got_[at] * got_[at];
    sums_.expected2 += x * x;
    sums_.product += got_[at] * x;
    energy += z2;
    sums_.signal2 += x * x * inverse;
    if (has_gain) {
      sums_.gain += error * x * inverse;
      sums_.gained_signal2 += x * x * inverse;
      coherent += std::abs(x) * std::sqrt(inverse);
    }
    if (!expected_.allowance.empty()) sums_.allowance2 += expected_.allowance[at] * expected_.allowance[at] * inverse;
    s_.max_abs = std::max(s_.max_abs, std::abs(error));
    const double z = std::sqrt(z2);
    if (!(z <= z_limit_)) {
      ++s_.beyond_limit;
      mark_bad(at);
    }
    if (z > s_.max_z || s_.elements == 1) {
      s_.max_z = z;
      if (!worst_is_final_) s_.worst = at;
    }
  }
  s_.row_energy[row] = energy;
  sums_.z2 += energy;
  sums_.coherent2 += coherent * coherent;
}

ErrorStatistics Measurement::run() {
  const int64_t rows = shape_.offsets.back() * shape_.heads;
  s_.row_energy.assign(rows, 0);
  for (int64_t r = 0; r < rows; ++r) row(r);
  if (s_.elements == 0) return s_;
  const double n = static_cast<double>(s_.elements);
  s_.rms_z = std::sqrt(sums_.z2 / n);
  s_.signal = std::sqrt(sums_.signal2 / n);
  s_.allowance = std::sqrt(sums_.allowance2 / n);
  if (sums_.expected2 > 0) s_.rel_l2 = std::sqrt(sums_.error2 / sums_.expected2);
  if (sums_.expected2 > 0 && sums_.got2 > 0) s_.cosine = sums_.product / std::sqrt(sums_.expected2 * sums_.got2);
  if (sums_.expected2 > 0 && sums_.got2 == 0) s_.cosine = 0;
  if (sums_.gained_signal2 > 0) {
    s_.gain = sums_.gain / sums_.gained_signal2;
    s_.gain_error = std::sqrt(sums_.coherent2) / sums_.gained_signal2;
  }
  return s_;
}

}  // namespace

Element TokenShape::element(int64_t index) const {
  const int64_t token = index / (heads * channels);
  const int64_t sequence = std::upper_bound(offsets.begin(), offsets.end(), token) - offsets.begin() - 1;
  return {sequence, index / channels % heads, token - offsets[sequence], index % channels};
}

ErrorStatistics measure_errors(const std::vector<double>& got, const Expected& expected, const TokenShape& shape, Dtype dtype,
                               double z_limit) {
  return Measurement(got, expected, shape, dtype, z_limit).run();
}

double effective_samples(const std::vector<double>& row_energy, const std::vector<double>& freedom) {
  double sum = 0, weighted = 0;
  for (size_t row = 0; row < row_energy.size(); ++row) {
    if (freedom[row] == 0) continue;
    sum += row_energy[row];
    weighted += row_energy[row] * row_energy[row] / freedom[row];
  }
  return weighted > 0 ? sum * sum / weighted : 0;
}

double field_error(const std::vector<double>& got, const Expected& expected, Dtype dtype) {
  double largest = 0;
  for (size_t at = 0; at < got.size(); ++at) {
    const double x = round_to(dtype, static_cast<float>(expected.value[at]));
    if (got[at] == x || (std::isnan(got[at]) && std::isnan(x))) continue;
    const double error = std::abs(got[at] - x);
    largest = std::isfinite(error) ? std::max(largest, error) : std::numeric_limits<double>::infinity();
  }
  return largest;
}

}  // namespace attnbench
