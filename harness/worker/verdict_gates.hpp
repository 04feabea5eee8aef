// The gates of the rule and their limits. No limit depends on what is judged, except that gradients given the kernel's
// own O take D from it.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "harness/worker/verdict_statistics.hpp"

namespace attnbench {

/// What the limits depend on.
struct GateScale {
  double u = 0;             ///< largest relative rounding error of the dtype
  double terms = 0;         ///< M, length of the tensor's sum: keys, or queries x group
  double emulator_rms = 0;  ///< RMS(z) of the emulator
  double samples = 0;       ///< n, effective sample size
  double distinct = 0;      ///< n_T, distinct scores; infinity unless the tensor is o and scores repeat
  double allowance = 0;     ///< t = RMS(b/sigma), gradients given O; else 0
  bool lazy_rescale = false;
  bool eager = false;
  bool has_power = true;  ///< eager: rounding S is a small, independent error
  bool bias = true;       ///< not for dk and dv of the eager profile: rows share the rounding of S
};

/// max(6.5, sqrt(2 ln(2 N / 1e-6))), the sub-Gaussian bound of N elements; eager at least 8.
double z_limit(int64_t elements, bool eager);

/// Gates "nonfinite" and "exact_zero": counts of violations, limit 0.
std::map<std::string, Gate> exact_gates(const ErrorStatistics& s);

/// Gates "z", "rms" and "bias".
std::map<std::string, Gate> error_gates(const ErrorStatistics& s, const GateScale& scale);

/// Most sigmas that an LSE may be off.
double lse_limit();

/// Gate "lse": |dLSE| <= 4 sigma. Statistics of the LSE, whose sigma is sL.
Gate lse_gate(const ErrorStatistics& s);

}  // namespace attnbench
