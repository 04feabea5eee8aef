// A standard normal number from two random words by Box-Muller, without the C library: sqrt(-2 ln u) cos(2 pi x).
// Only IEEE operations with one rounding each (fma, sqrt, +, -, *), so every compiler and device gives the same bits,
// provided that it neither contracts nor reorders them: compile the users of this file with -ffp-contract=off (nvcc:
// -fmad=false). The polynomials are Chebyshev fits, within 5e-7 of the functions. |result| <= 5.77.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "harness/attention/row_team.hpp"

namespace attnbench {

/// ln u for a normal float u > 0: u = 2^exponent m, m in [sqrt(1/2), sqrt(2)), ln m = x p(x) with x = m - 1.
ATTNBENCH_ON_BOTH inline float fixed_log(float u) {
  constexpr uint32_t kSqrtHalf = 0x3F3504F3;
  uint32_t bits;
  memcpy(&bits, &u, sizeof bits);
  bits -= kSqrtHalf;
  const float exponent = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  const uint32_t of_fraction = (bits & 0x007FFFFF) + kSqrtHalf;
  float fraction;
  memcpy(&fraction, &of_fraction, sizeof fraction);
  const float x = fraction - 1.0f;
  float p = 0.08743944764137268f;
  p = std::fma(p, x, -0.14377330243587494f);
  p = std::fma(p, x, 0.14949095249176025f);
  p = std::fma(p, x, -0.16560696065425873f);
  p = std::fma(p, x, 0.19956977665424347f);
  p = std::fma(p, x, -0.2500215470790863f);
  p = std::fma(p, x, 0.3333418369293213f);
  p = std::fma(p, x, -0.49999988079071045f);
  p = std::fma(p, x, 1.0f);
  return std::fma(exponent, 0.6931471824645996f, p * x);
}

/// cos(2 pi x) = 1 - 2 sin^2(pi x) for x in [-1/2, 1/2], sin(pi x) = x p(x^2).
ATTNBENCH_ON_BOTH inline float fixed_cos_turns(float x) {
  const float y = x * x;
  float p = 0.07765766233205795f;
  p = std::fma(p, y, -0.598291277885437f);
  p = std::fma(p, y, 2.550077438354492f);
  p = std::fma(p, y, -5.167710304260254f);
  p = std::fma(p, y, 3.1415927410125732f);
  const float sine = p * x;
  return std::fma(-2.0f * sine, sine, 1.0f);
}

/// [0, 1) with 24 bits.
ATTNBENCH_ON_BOTH inline float unit_from(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word >> 8)) * 0x1p-24f;
}

ATTNBENCH_ON_BOTH inline float normal_from(uint32_t radius_word, uint32_t angle_word) {
  const float u = 1.0f - unit_from(radius_word);  // (0, 1]
  const float turns = static_cast<float>(static_cast<int32_t>(angle_word) >> 8) * 0x1p-24f;
  return std::sqrt(-2.0f * fixed_log(u)) * fixed_cos_turns(turns);
}

}  // namespace attnbench
