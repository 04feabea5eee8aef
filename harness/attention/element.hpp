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

/// fp16 keeps its subnormals; fp32 arithmetic may flush those of bf16 and fp32.
ATTNBENCH_ON_BOTH inline Spacing spacing_of(Dtype dtype) {
  if (dtype == Dtype::fp16) return {0x1p-10, 0x1p-24};
  return {dtype == Dtype::bf16 ? 0x1p-7 : 0x1p-23, 0x1p-126};
}

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
  const double spacing = spacing_of(dtype).at(x);
  return static_cast<float>(std::nearbyint(x / spacing) * spacing);
}

/// NaN where one of them is.
ATTNBENCH_ON_BOTH inline double larger(double a, double b) {
  return a > b || a != a ? a : b;
}

/// Effective number of equal sources, from the sums of their squares and fourth powers.
ATTNBENCH_ON_BOTH inline double effective_sources(double sum2, double sum4, int64_t most) {
  if (!(sum4 > 0)) return 1;
  const double count = sum2 * sum2 / sum4, channels = static_cast<double>(most);
  return count < 1 ? 1 : count > channels ? channels : count;
}

/// The number that a low-precision dtype holds in these bits.
ATTNBENCH_ON_BOTH inline float number_of(Dtype dtype, uint16_t bits) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  const uint32_t sign = wide & 0x80000000u;
  if (dtype == Dtype::fp16) {
    const uint32_t exponent = bits >> 10 & 0x1fu, fraction = bits & 0x3ffu;
    if (exponent == 0) {
      const float size = static_cast<float>(fraction) * 0x1p-24f;
      return sign ? -size : size;
    }
    wide = sign | (exponent == 0x1fu ? 0xffu : exponent + 112) << 23 | fraction << 13;
  }
  float number;
  memcpy(&number, &wide, sizeof number);
  return number;
}

/// Numbers of a tensor: float64, or a case's.
struct Numbers {
  const void* data = nullptr;
  bool is_float64 = true;
  Dtype dtype = Dtype::fp32;  ///< where it is not

  ATTNBENCH_ON_BOTH double at(int64_t i) const {
    if (is_float64) return static_cast<const double*>(data)[i];
    if (dtype == Dtype::fp32) return static_cast<const float*>(data)[i];
    return number_of(dtype, static_cast<const uint16_t*>(data)[i]);
  }
};

}  // namespace attnbench
