#include "harness/worker/verdict_gates.hpp"

#include <algorithm>
#include <cmath>

namespace attnbench {
namespace {

constexpr double kFalseAlarms = 1e-6;     ///< chance of an alarm per tensor that the sub-Gaussian bound allows
constexpr double kGainDeviations = 5.39;  ///< sqrt(2 ln(2 / kFalseAlarms)), as published with the rule
constexpr double kTruncation = 0x1p-26;   ///< relative drift per summed term of an accumulator that truncates
constexpr double kRatioMargin = 0.05, kRatioDeviations = 6;
constexpr double kRmsFloor = 0.5, kLazyRmsFloor = 0.8;
constexpr double kGainMargin = 0.2;  ///< in units of u
constexpr double kLseLimit = 4;

Gate::Verdict verdict_of(double value, double limit, bool power) {
  if (!power) return Gate::Verdict::no_power;
  return !(value <= limit) ? Gate::Verdict::fail : Gate::Verdict::pass;
}

Gate rms_gate(const ErrorStatistics& s, const GateScale& scale) {
  const double n = std::min(scale.samples, scale.distinct);
  const double ratio = 1 + std::max(kRatioMargin, n > 0 ? kRatioDeviations / std::sqrt(n) : INFINITY);
  const bool power = scale.has_power && n > 0 && ratio <= 1.5;
  const double floor = scale.lazy_rescale ? kLazyRmsFloor : kRmsFloor;
  const double ordinary = ratio * std::max(scale.emulator_rms, floor) + 3 * scale.allowance;
  const double drift = kTruncation * scale.terms * s.signal;
  const double limit = std::isfinite(ratio) ? std::hypot(ordinary, drift) : 0;
  return {s.rms_z, limit, static_cast<int64_t>(n), verdict_of(s.rms_z, limit, power)};
}

Gate bias_gate(const ErrorStatistics& s, const GateScale& scale) {
  const double ties = scale.u / std::sqrt(3 * scale.distinct);  // 0 where scores do not repeat
  const double error = kGainDeviations * std::hypot(s.gain_error, ties);
  const double limit = std::max(kGainMargin * scale.u, error) + kTruncation * scale.terms;
  const bool power = scale.has_power && error <= 3 * kGainMargin * scale.u;
  return {std::abs(s.gain), limit, s.elements, verdict_of(std::abs(s.gain), limit, power)};
}

Gate count_gate(int64_t violations, int64_t elements) {
  const double value = static_cast<double>(violations);
  return {value, 0, elements, verdict_of(value, 0, true)};
}

}  // namespace

double z_limit(int64_t elements, bool eager) {
  const double bound = std::sqrt(2 * std::log(2 * static_cast<double>(std::max<int64_t>(elements, 1)) / kFalseAlarms));
  return std::max(eager ? 8.0 : 6.5, bound);
}

std::map<std::string, Gate> exact_gates(const ErrorStatistics& s) {
  const int64_t all = s.elements + s.exact_elements + s.nonfinite_mismatches;
  std::map<std::string, Gate> gates{{"nonfinite", count_gate(s.nonfinite_mismatches, all)}};
  if (s.exact_elements > 0) gates["exact_zero"] = count_gate(s.exact_violations, s.exact_elements);
  return gates;
}

std::map<std::string, Gate> error_gates(const ErrorStatistics& s, const GateScale& scale) {
  const double limit = z_limit(s.elements, scale.eager);
  std::map<std::string, Gate> gates{{"z", {s.max_z, limit, s.elements, verdict_of(s.max_z, limit, scale.has_power)}},
                                    {"rms", rms_gate(s, scale)}};
  if (scale.bias) gates["bias"] = bias_gate(s, scale);
  return gates;
}

double lse_limit() {
  return kLseLimit;
}

Gate lse_gate(const ErrorStatistics& s) {
  return {s.max_z, kLseLimit, s.elements, verdict_of(s.max_z, kLseLimit, true)};
}

}  // namespace attnbench
