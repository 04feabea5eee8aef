// The gates and their limits. No limit depends on what is judged, except that gradients given the kernel's own
// O take D from it. A value that is not a number fails: every limit is asked as !(value <= limit).
//
// A limit is factor x formula, or the room that the emulator's own value leaves, if that is more; what repeated values (T) add to
// the gain's is not scaled, since few of the calibrated tensors have any. The constants of the formulas, and the factors (at most
// 1, from the errors of correct implementations), are data: harness/run/calibration.hpp. The constants that stand below are those
// of the file, but for those of the room (1.25, 1.5, 1.25 u) and of power (1.5, 3), which stand in the code.
//
// z = (x - x64) / sigma at each of N elements; x64 and sigma: oracle and error model (error_model.hpp), as are u and b. Formulas:
//   nonfinite   elements that are not finite where the oracle is, or the other way round, or of another kind        limit 0
//   exact_zero  elements that the mask makes 0, and padded rows that must be 0, which are not                       limit 0
//   z     max|z| <= max(6.5, sqrt(2 ln(2 N / 1e-6)))
//   rms   RMS(z)^2 <= [ r max(R, F) + 3 t ]^2 + [ c M X ]^2,  r = 1 + max(0.05, 6 / sqrt(n))
//   bias  |g| <= max(0.2 u, 5.39 hypot(e, u / sqrt(3 T))) + c M,  g = sum((x - x64) x64 / sigma^2) / sum(x64^2 / sigma^2)
//         where only outputs are rounded:  |g'| <= e' + 5.39 f sqrt(A) + (5.39^2 / 3) q A + c M,  A = max(1, N / T)
//   lse   |L - L64| <= 4 sigma_L at every row, and rms: RMS(z) <= 4; the gates of the LSE
// No limit of z and bias, where P is rounded, is below 1.25 times what the emulator has there, as far as 1.5 times the formula of
// z and 1.25 u of bias (if all P are equal, their one rounding error is the gain, and is at most u):
// errors that are alike, of equal P or of P below the dtype's smallest number, add up, and no formula knows which are.
// What they see: z one wrong element; rms a small error everywhere; bias an error with the sign of the value, such as a wrong
// scale or a truncated P, far below what rms sees.
//   R  RMS(z) of the emulator on the same case: the error that a correct kernel with these roundings has
//   F  0.5: least R that is believed. sigma bounds a rounding error by its largest, h^2/3; a tensor whose roundings happen to be
//      exact must not make the limit 0
//   r  room for a correct kernel that sums in another order: 5 %, or 6 standard deviations of an RMS over n samples.
//      Of two such RMS log(ratio) has the deviation 1 / sqrt(n) (the ratio of their squares is an F of n and n), so that a
//      correct one is beyond r = 1.5, the largest with power, by a chance of 6e-7
//   n  effective number of independent errors, (sum_r E_r)^2 / sum_r (E_r^2 / nu_r): E_r the emulator's sum of z^2 of a row,
//      nu_r the error sources that its elements share, and of gradients given O at most its independent channels
//      (attention/reference.cpp): where K or Q has a mean, an error of dS is alike in all; at most T;
//      of a layer of `llama` at most that of the noise drawn for it
//   T  effective number of different values of the tensor (equal ones round alike, and count once): 1 / the chance that two
//      elements are the same but for sign and a power of two; for o at most the distinct scores, where scores repeat
//   t  RMS(b / sigma) of gradients given O, else 0: b is the part of sigma that keeps its sign, so it adds up linearly
//   M  length of the tensor's sum: keys (o, dq), queries x group (dk, dv);  X  RMS(x64 / sigma)
//   c M  drift, relative to the value, of an accumulator that truncates each of M sums: 2^-26 on a GPU's tensor cores, 0 on a
//      CPU; e more where a dropout multiplies all by 1 / (1 - p), a number of float32
//   e  standard deviation of g if the errors of a row are fully coherent:
//      sqrt(sum_r (sum |x64| / sigma)^2) / sum(x64^2 / sigma^2)
//   g' g with round(x64), the expected value in the output's dtype, in place of x64: the error of rounding the output, which is
//      nearly all there is, is the same in both and cancels. What is left are elements that an inner error tau carried across a
//      boundary between two values of the dtype; on average that is tau, so that g' estimates the same gain as g, with a tenth of
//      its noise. tau^2 = sigma^2 - ulp^2/12, and 2 e |x64| more for the sums in float32 (e = 2^-24, error_model.hpp):
//      e' = sum(tau |x64| / sigma^2) / sum(x64^2 / sigma^2), f = sqrt(sum((tau ulp + tau^2) x64^2 / sigma^4)) / the same sum,
//      q = max(ulp |x64| / sigma^2) / the same sum: one element that crosses. They are few, so that the bound is Bernstein's.
//      Elements in the very middle between two values of the dtype do not count: nobody can tell where they round to.
//   1e-6, 5.39  chance of an alarm per tensor under a sub-Gaussian error, and the deviations that have it:
//      sqrt(2 ln(2 / 1e-6))
//      Where sigma^2 is an estimate of nu degrees of freedom (layers of `llama`: harness/llama/reference.hpp), so that nu times
//      it over the true one is chi^2, that bound 2 E[exp(-z^2 estimate / (2 true))] is 2 (1 + z^2 / nu)^(-nu/2), and in the place
//      of sqrt(2 ln(2 N / 1e-6)) stands sqrt(nu ((2 N / 1e-6)^(2 / nu) - 1))
//   6.5, 4      sigmas a single element of a correct kernel may reach however small the tensor
//   0.2 u       least gain that counts: a fifth of the largest relative rounding error
//   c d B  what c makes of a score of d terms: B is |s| 65536 where fill=deep_negative and P is rounded, else 0. Scores of a row
//      on both sides of a power of two are off by different parts of that, which flattens the softmax, always the same way
// No power, so that the gate says nothing: rms if n = 0 or r > 1.5; bias if c d B + 5.39 hypot(...), or the limit of g' by its
// formula, is above 3 times the least gain that counts: 0.6 u, which is what truncation costs; of layers of `llama` only if it is
// above 0.02 too, since a wrong scale is what it has to see there.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "harness/run/calibration.hpp"
#include "harness/worker/verdict_statistics.hpp"

namespace attnbench {

/// What the limits of one tensor come from: the calibration, and who shares its cells.
struct Limits {
  const Calibration* calibration = nullptr;
  std::string rounds_like;  ///< calibrated_as()
  bool large_scores = false;
  Dtype dtype = Dtype::bf16;
  std::string tensor;                   ///< calibrated_tensor()
  double variance_freedom = kInfinity;  ///< nu of sigma^2; infinity: it is no estimate

  const GateConstants& constants() const { return calibration->constants; }
  /// factor x formula of a gate that n elements or samples are behind.
  double limit(const char* gate, int64_t n, double formula) const;
};

/// What the formulas depend on.
struct GateScale {
  Limits limits;
  double u = 0;              ///< largest relative rounding error of the dtype
  double terms = 0;          ///< M, length of the tensor's sum: keys, or queries x group
  double emulator_rms = 0;   ///< RMS(z) of the emulator
  double emulator_z = 0;     ///< its max|z|
  double emulator_gain = 0;  ///< its |g|
  double samples = 0;        ///< n, effective sample size
  double distinct = 0;       ///< T, different values; infinity: all are
  double same_gain = 0;      ///< e of dropout's 1 / (1 - p), else 0
  double huge_scores = 0;    ///< d B: terms times size of scores so large that what truncation does to them counts; else 0
  double allowance = 0;      ///< t = RMS(b/sigma), gradients given O; else 0
  double telling_gain = 0;   ///< a limit of the gain that is no larger says something, however coarse the dtype's u makes it
  bool only_outputs_rounded = false;  ///< in a dtype of low precision: the gain is that beside round(x64)
};

/// Deviations that the largest of so many sub-Gaussian errors exceeds with the chance of an alarm at most, where their variance
/// is an estimate of so many degrees of freedom.
double deviations(int64_t errors, double variance_freedom, const GateConstants& c);

/// The limit of gate z: max(6.5, deviations), the sub-Gaussian bound of N elements, times its factor, or the emulator's room.
double z_limit(int64_t elements, const GateScale& scale);

/// Gates "nonfinite" and "exact_zero": counts of violations, limit 0.
std::map<std::string, Gate> exact_gates(const ErrorStatistics& s);

/// Gates "z", "rms" and "bias".
std::map<std::string, Gate> error_gates(const ErrorStatistics& s, const GateScale& scale);

/// Most sigmas that one of so many LSEs may be off.
double lse_limit(int64_t rows, const Limits& limits);

/// Gates "lse", |dLSE| <= 4 sigma, and "rms" of the LSE, whose statistics these are; sigma is sL.
std::map<std::string, Gate> lse_gates(const ErrorStatistics& s, const Limits& limits);

}  // namespace attnbench
