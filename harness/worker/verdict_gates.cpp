#include "harness/worker/verdict_gates.hpp"

#include <algorithm>
#include <cmath>

namespace attnbench {
namespace {

// Beyond these a gate has no power. They make no limit, so that no calibration changes them.
constexpr double kMostRatio = 1.5;  // of what may pass to what the emulator has
constexpr double kMostGains = 3;    // of the least gain that counts

// How far a correct kernel may be beyond the emulator, and how far that may carry the limit of z beyond its formula.
constexpr double kEmulatorRoom = 1.25, kMostWidening = 1.5;

/// The least limit that the emulator's own value leaves a gate, but no more than `most`.
double room(double emulators, double most) {
  return std::min(kEmulatorRoom * emulators, most);
}

struct Judged {
  const char* gate;
  double value, formula;  ///< the statistic, and its limit by the formula
  int64_t n;
  bool power = true;
  double of_ties = 0;  ///< part of the formula that no factor scales
  double room = 0;
};

Gate judged(const Judged& j, const Limits& limits) {
  const double limit = limits.limit(j.gate, j.n, j.formula - j.of_ties) + j.of_ties;
  Gate gate{j.value, std::max(limit, j.room), j.n, Gate::Verdict::pass, j.formula};
  if (!j.power)
    gate.verdict = Gate::Verdict::no_power;
  else if (!(gate.value <= gate.limit))
    gate.verdict = Gate::Verdict::fail;
  return gate;
}

/// Relative to the value, and the same in all of a tensor.
double drift_of(const GateScale& scale) {
  return scale.limits.constants().truncation * scale.terms + scale.same_gain;
}

Gate rms_gate(const ErrorStatistics& s, const GateScale& scale) {
  const GateConstants& c = scale.limits.constants();
  const double n = std::min(scale.samples, scale.distinct);
  const double ratio = 1 + std::max(c.ratio_margin, n > 0 ? c.ratio_deviations / std::sqrt(n) : INFINITY);
  const bool power = n > 0 && ratio <= kMostRatio;
  const double ordinary = ratio * std::max(scale.emulator_rms, c.rms_floor) + 3 * scale.allowance;
  const double drift = drift_of(scale) * s.signal;
  const double formula = std::isfinite(ratio) ? std::hypot(ordinary, drift) : 0;
  return judged({.gate = "rms", .value = s.rms_z, .formula = formula, .n = static_cast<int64_t>(n), .power = power},
                scale.limits);
}

Gate bias_gate(const ErrorStatistics& s, const GateScale& scale) {
  const GateConstants& c = scale.limits.constants();
  const double drift = drift_of(scale), least = c.gain_floor * scale.u;
  if (scale.only_outputs_rounded) {
    const double alike = std::max(1.0, static_cast<double>(s.elements) / scale.distinct);
    const auto bound = [&](double together) {
      return s.inner_gain + c.gain_deviations * s.inner_gain_error * std::sqrt(together) +
             c.gain_deviations * c.gain_deviations / 3 * s.gain_step * together;
    };
    const double error = bound(alike);
    return judged({.gate = "bias",
                   .value = std::abs(s.gain_beside_rounded),
                   .formula = error + drift,
                   .n = s.elements,
                   .power = error <= kMostGains * least,
                   .of_ties = error - bound(1)},
                  scale.limits);
  }
  const double ties = scale.u / std::sqrt(3 * scale.distinct);  // 0 where values do not repeat
  const double error = c.gain_deviations * std::hypot(s.gain_error, ties);
  const bool power = error + c.truncation * scale.huge_scores <= std::max(kMostGains * least, scale.telling_gain);
  const double limit = std::max(least, error), without_ties = std::max(least, c.gain_deviations * s.gain_error);
  return judged({.gate = "bias",
                 .value = std::abs(s.gain),
                 .formula = limit + drift,
                 .n = s.elements,
                 .power = power,
                 .of_ties = limit - without_ties,
                 .room = room(scale.emulator_gain, kEmulatorRoom * scale.u)},
                scale.limits);
}

Gate count_gate(int64_t violations, int64_t elements) {
  return {static_cast<double>(violations), 0, elements, violations > 0 ? Gate::Verdict::fail : Gate::Verdict::pass, 0};
}

double z_formula(int64_t elements, const Limits& limits) {
  const GateConstants& c = limits.constants();
  return std::max(c.z_floor, deviations(std::max<int64_t>(elements, 1), limits.variance_freedom, c));
}

double z_room(const GateScale& scale, double formula) {
  return room(scale.emulator_z, kMostWidening * formula);
}

}  // namespace

double Limits::limit(const char* gate, int64_t n, double formula) const {
  return formula * calibration->factor({rounds_like, large_scores, dtype, tensor, gate, decade_of(n)});
}

double deviations(int64_t errors, double variance_freedom, const GateConstants& c) {
  const double tail = 2 * std::log(2 * static_cast<double>(errors) / c.false_alarms);
  return std::sqrt(variance_freedom < kInfinity ? variance_freedom * std::expm1(tail / variance_freedom) : tail);
}

double z_limit(int64_t elements, const GateScale& scale) {
  const double formula = z_formula(elements, scale.limits);
  return std::max(scale.limits.limit("z", elements, formula), z_room(scale, formula));
}

std::map<std::string, Gate> exact_gates(const ErrorStatistics& s) {
  const int64_t all = s.elements + s.exact_elements + s.nonfinite_mismatches;
  std::map<std::string, Gate> gates{{"nonfinite", count_gate(s.nonfinite_mismatches, all)}};
  if (s.exact_elements > 0) gates["exact_zero"] = count_gate(s.exact_violations, s.exact_elements);
  return gates;
}

std::map<std::string, Gate> error_gates(const ErrorStatistics& s, const GateScale& scale) {
  const double formula = z_formula(s.elements, scale.limits);
  const Judged z{.gate = "z", .value = s.max_z, .formula = formula, .n = s.elements, .room = z_room(scale, formula)};
  return {{"z", judged(z, scale.limits)}, {"rms", rms_gate(s, scale)}, {"bias", bias_gate(s, scale)}};
}

double lse_limit(int64_t rows, const Limits& limits) {
  return limits.limit("lse", rows, limits.constants().lse);
}

std::map<std::string, Gate> lse_gates(const ErrorStatistics& s, const Limits& limits) {
  const double formula = limits.constants().lse;
  return {{"lse", judged({.gate = "lse", .value = s.max_z, .formula = formula, .n = s.elements}, limits)},
          {"rms", judged({.gate = "rms", .value = s.rms_z, .formula = formula, .n = s.elements}, limits)}};
}

}  // namespace attnbench
