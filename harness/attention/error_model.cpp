#include "harness/attention/error_model.hpp"

#include <cmath>

#include "harness/attention/element.hpp"

namespace attnbench {

Rounding rounding_of(const Profile& profile, const Problem& problem) {
  const bool low = problem.dtype != Dtype::fp32;
  Rounding r;
  r.dtype = problem.dtype;
  r.u = spacing_of(problem.dtype).of_one / 2;
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
  return spacing_of(dtype).at(x);
}

double rounding_variance(Dtype dtype, double x) {
  return spacing_of(dtype).variance_at(x);
}

}  // namespace attnbench
