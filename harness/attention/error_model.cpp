#include "harness/attention/error_model.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

namespace attnbench {
namespace {

int mantissa_bits(Dtype dtype) {
  return dtype == Dtype::bf16 ? 7 : dtype == Dtype::fp16 ? 10 : 23;
}

/// Exponent of the smallest spacing: fp16 keeps its subnormals, fp32 arithmetic may flush those of bf16 and fp32.
int smallest_spacing_exponent(Dtype dtype) {
  return dtype == Dtype::fp16 ? -24 : -126;
}

double power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<uint64_t>(exponent + 1023) << 52);
}

int exponent_of(double x) {
  return static_cast<int>(std::bit_cast<uint64_t>(x) >> 52 & 0x7ff) - 1023;
}

}  // namespace

Rounding rounding_of(const Profile& profile, const Problem& problem) {
  const bool low = problem.dtype != Dtype::fp32;
  Rounding r;
  r.dtype = problem.dtype;
  r.u = std::ldexp(1.0, -mantissa_bits(problem.dtype) - 1);
  r.f = problem.dtype == Dtype::fp16 ? std::ldexp(1.0, -25) : 0;
  r.e = std::ldexp(1.0, -24);
  r.k_scores = 2 + static_cast<double>(problem.d) / 16;
  r.k_dp = 2 + static_cast<double>(problem.dv) / 16;
  r.accumulation = low ? 0 : r.e * r.e;
  r.p = low && profile.p != Profile::Probabilities::not_rounded;
  r.p_normalised = r.p && profile.p == Profile::Probabilities::normalised;
  r.ds = low && profile.rounds_ds;
  r.ds_from_rounded_p = r.ds && profile.ds_from_rounded_p;
  const double s = std::abs(problem.softmax_scale());
  r.scales_ds = r.ds && !profile.rounds_scores && profile.scales_ds && r.f > 0 && s > 0;
  r.f_ds = r.scales_ds ? r.f / s : r.f;
  r.scores = low && profile.rounds_scores;
  r.d_from_output = profile.d == Profile::RowSum::from_output;
  r.gqa_partials = profile.rounds_gqa_partials && problem.group() > 1;
  return r;
}

double ulp(Dtype dtype, double x) {
  return power_of_two(std::max(exponent_of(x) - mantissa_bits(dtype), smallest_spacing_exponent(dtype)));
}

double rounding_variance(Dtype dtype, double x) {
  const double spacing = ulp(dtype, x);
  return spacing * spacing / 12;
}

}  // namespace attnbench
