// Functions of one number that row steps (row_team.hpp) call, on a CPU and on a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "harness/attention/row_team.hpp"
#include "harness/run/problem.hpp"

namespace attnbench {

/// Distances between neighbours of a dtype, as ulp() of error_model.hpp has them.
struct Spacing {
  double of_one = 0, smallest = 0;

  /// The bits of the exponent alone are the power of two at or below |x|; NaN or infinity where x is.
  ATTNBENCH_ON_BOTH double at(double x) const {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= uint64_t(0x7ff) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    const double spacing = power * of_one;
    return spacing < smallest ? smallest : spacing;
  }
  /// ulp(x)^2/12: variance of rounding x.
  ATTNBENCH_ON_BOTH double variance_at(double x) const { return at(x) * at(x) / 12; }
};

/// x rounded to the nearest value of the dtype, ties to even; beyond the largest: infinity.
ATTNBENCH_ON_BOTH inline float round_to(Dtype dtype, float x) {
  if (dtype == Dtype::fp32 || !(std::fabs(x) < INFINITY)) return x;
  if (dtype == Dtype::bf16) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
    memcpy(&x, &bits, sizeof bits);
    return x;
  }
  if (std::fabs(x) >= 65520) return x > 0 ? INFINITY : -INFINITY;
  const double spacing = Spacing{0x1p-10, 0x1p-24}.at(x);
  return static_cast<float>(std::nearbyint(x / spacing) * spacing);
}

}  // namespace attnbench
