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

/// x rounded to the nearest value of the dtype, ties to even; beyond the largest: infinity. Without branches, so that loops over
/// it are vectorised.
ATTNBENCH_ON_BOTH inline float round_to(Dtype dtype, float x) {
  if (dtype == Dtype::fp32) return x;
  const uint32_t dropped = dtype == Dtype::bf16 ? 16 : 13;  // bits
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits = (bits + (1u << (dropped - 1)) - 1 + (bits >> dropped & 1u)) >> dropped << dropped;
  float rounded;
  memcpy(&rounded, &bits, sizeof rounded);
  if (dtype == Dtype::fp16) {
    const float size = std::fabs(x), subnormal = (size + 0.5f) - 0.5f;  // whose spacing is that of floats in [0.5, 1)
    rounded = size < 0x1p-14f ? std::copysign(subnormal, x) : size < 65520 ? rounded : std::copysign(INFINITY, x);
  }
  return x == x ? rounded : x;
}

/// e^x to about an ulp. On a CPU an expf that loops can be vectorised with: 2^n e^r, |r| <= ln 2 / 2, by Cephes' polynomial.
ATTNBENCH_ON_BOTH inline float exponential(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
  constexpr float kToInteger = 0x1.8p23f;  // a float's last bit beyond it is 1
  x = x < -104 ? -104 : x > 89 ? 89 : x;   // 0 and infinity
  const float shifted = x * 1.44269504f + kToInteger, n = shifted - kToInteger;
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float y =
      ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r + 1.6666665459e-1f) * r +
      5.0000001201e-1f;
  y = y * (r * r) + r + 1;
  // 2^n in two factors, each of which is a normal float.
  int32_t bits, zero;
  memcpy(&bits, &shifted, sizeof bits);
  memcpy(&zero, &kToInteger, sizeof zero);
  const int32_t exponent = bits - zero, half = exponent >> 1;
  const uint32_t powers[] = {static_cast<uint32_t>(half + 127) << 23, static_cast<uint32_t>(exponent - half + 127) << 23};
  float first, second;
  memcpy(&first, &powers[0], sizeof first);
  memcpy(&second, &powers[1], sizeof second);
  return y * first * second;
#endif
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

/// The bits that hold a number of a low-precision dtype; NaN: those of the quiet one. Without branches, as round_to.
ATTNBENCH_ON_BOTH inline uint16_t bits_of(Dtype dtype, float number) {
  uint32_t wide;
  memcpy(&wide, &number, sizeof wide);
  if (dtype == Dtype::bf16) return static_cast<uint16_t>(number == number ? wide >> 16 : 0x7fc0);
  const float size = std::fabs(number);
  const uint32_t normal = (wide << 1 >> 14) - (112u << 10),
                 subnormal = static_cast<uint32_t>(size < 0x1p-14f ? size * 0x1p24f : 0);
  const uint32_t finite = size < 0x1p-14f ? subnormal : normal;
  return static_cast<uint16_t>(number == number ? (wide >> 16 & 0x8000u) | (size < INFINITY ? finite : 0x7c00) : 0x7e00);
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
