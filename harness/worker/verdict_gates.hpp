// The gates of the rule and their limits. No limit depends on what is judged, except that gradients given the kernel's
// own O take D from it. A value that is not a number fails: every limit is asked as !(value <= limit).
//
// z = (x - x64) / sigma at each of N elements; x64 and sigma: oracle and error model (error_model.hpp), as are u and b. Gates:
//   nonfinite   elements that are not finite where the oracle is, or the other way round, or of another kind        limit 0
//   exact_zero  elements that the mask makes 0, and padded rows that must be 0, which are not                       limit 0
//   z     max|z| <= max(6.5, sqrt(2 ln(2 N / 1e-6)));  eager: max(8, that)
//   rms   RMS(z)^2 <= [ r max(R, F) + 3 t ]^2 + [ 2^-26 M X ]^2,  r = 1 + max(0.05, 6 / sqrt(n))
//   bias  |g| <= max(0.2 u, 5.39 hypot(e, u / sqrt(3 T))) + 2^-26 M,  g = sum((x - x64) x64 / sigma^2) / sum(x64^2 / sigma^2)
//   lse   |L - L64| <= 4 sigma_L at every row; the only gate of the LSE
// What they see: z one wrong element; rms a small error everywhere; bias an error with the sign of the value, such as a wrong
// scale or a truncated P, far below what rms sees.
//   R  RMS(z) of the emulator on the same case: the error that a correct kernel with these roundings has
//   F  0.5, or 0.8 with lazy rescaling: least R that is believed. sigma bounds a rounding error by its largest, h^2/3; a tensor
//      whose roundings happen to be exact must not make the limit 0
//   r  room for a correct kernel that sums in another order: 5 %, or 6 standard deviations of an RMS over n samples
//   n  effective number of independent errors, (sum_r E_r)^2 / sum_r (E_r^2 / nu_r): E_r the emulator's sum of z^2 of a row,
//      nu_r the error sources that its elements share; for o at most T
//   T  distinct scores where scores repeat (equal scores round alike), else infinity
//   t  RMS(b / sigma) of gradients given O, else 0: b is the part of sigma that keeps its sign, so it adds up linearly
//   M  length of the tensor's sum: keys (o, dq), queries x group (dk, dv);  X  RMS(x64 / sigma)
//   2^-26 M    drift, relative to the value, of an accumulator that truncates each of M sums
//   e  standard deviation of g if the errors of a row are fully coherent:
//      sqrt(sum_r (sum |x64| / sigma)^2) / sum(x64^2 / sigma^2)
//   1e-6, 5.39  chance of an alarm per tensor under a sub-Gaussian error, and the deviations that have it:
//      sqrt(2 ln(2 / 1e-6))
//   6.5, 8, 4   sigmas a single element of a correct kernel may reach however small the tensor;
//      8 as eager's model is of first order only
//   0.2 u       least gain that counts: a fifth of the largest relative rounding error
// No power, so that the gate says nothing: rms if n = 0 or r > 1.5; bias if 5.39 hypot(...) > 0.6 u, which is what truncation
// costs; all three if the eager profile's rounding of S is not small and independent. A tensor with nothing but such gates is
// mistrusted.
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
