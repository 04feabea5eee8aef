// The one file that knows how wide this machine's vectors are: kLanes floats, 16 (AVX-512), 8 (AVX2) or 4 (SSE2).
//
// Vectors are GCC's, so + - * / and comparisons work as on numbers; only what GCC does not express as one
// instruction is spelled with intrinsics. Loads and stores take any address.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace attnbench::flash_varlen::cpu {

#if defined(__AVX512F__)
inline constexpr int64_t kLanes = 16;
inline constexpr int kVectorRegisters = 32;
inline constexpr __mmask16 kAllLanes = 0xffff;  // the unmasked intrinsics raise false warnings in g++ 12
#elif defined(__AVX2__)
inline constexpr int64_t kLanes = 8;
inline constexpr int kVectorRegisters = 16;
#else
inline constexpr int64_t kLanes = 4;
inline constexpr int kVectorRegisters = 16;
#endif

using Float = float __attribute__((vector_size(kLanes * sizeof(float))));
using Int = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));
using Word = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));

/// Functions on vectors are always inlined: passing them in registers would depend on the ABI of -march.
#define ATTNBENCH_INLINE inline __attribute__((always_inline))

template <class To, class From>
ATTNBENCH_INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

ATTNBENCH_INLINE Float load(const float* from) {
  Float x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

ATTNBENCH_INLINE void store(float* to, Float x) {
  std::memcpy(to, &x, sizeof x);
}

ATTNBENCH_INLINE Float broadcast(float x) {
  return x - Float{};
}
ATTNBENCH_INLINE Int broadcast(int32_t x) {
  return x - Int{};
}

/// 0, 1, 2, …
ATTNBENCH_INLINE Int lane_numbers() {
  Int lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
  return lanes;
}

/// The greater one; b where one of them is NaN.
ATTNBENCH_INLINE Float max(Float a, Float b) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_ps(kAllLanes, a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

/// The smaller one; b where one of them is NaN.
ATTNBENCH_INLINE Float min(Float a, Float b) {
#if defined(__AVX512F__)
  return _mm512_maskz_min_ps(kAllLanes, a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

/// x 2^n with one rounding, for whole n in [-252, 254] and |x| in [1/2, 2]; NaN stays.
ATTNBENCH_INLINE Float scale_by_power_of_two(Float x, Int n) {
#if defined(__AVX512F__)
  return _mm512_maskz_scalef_ps(kAllLanes, x, __builtin_convertvector(n, Float));
#else
  const Int half = n >> 1;
  return x * bits<Float>((half + 127) << 23) * bits<Float>((n - half + 127) << 23);  // the first product is exact
#endif
}

/// The sum of the lanes, pairwise.
ATTNBENCH_INLINE float sum(Float x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

/// One stage of the transposition below: exchanges the off-diagonal blocks of `step` lanes of each pair of rows.
template <int step>
ATTNBENCH_INLINE void exchange_blocks(Float (&rows)[kLanes]) {
  Int upper, lower;  // lanes of the first operand are 0 … kLanes - 1, of the second kLanes …
  for (int lane = 0; lane < kLanes; ++lane) {
    upper[lane] = lane & step ? lane - step + int(kLanes) : lane;
    lower[lane] = lane & step ? lane + int(kLanes) : lane + step;
  }
#pragma GCC unroll 16
  for (int row = 0; row < kLanes; ++row) {
    if (row & step) continue;
    const Float a = rows[row], b = rows[row + step];
    rows[row] = __builtin_shuffle(a, b, upper);
    rows[row + step] = __builtin_shuffle(a, b, lower);
  }
}

/// Transposes a square of kLanes rows of kLanes floats.
ATTNBENCH_INLINE void transpose(Float (&rows)[kLanes]) {
  exchange_blocks<1>(rows);
  exchange_blocks<2>(rows);
  if constexpr (kLanes > 4) exchange_blocks<4>(rows);
  if constexpr (kLanes > 8) exchange_blocks<8>(rows);
}

}  // namespace attnbench::flash_varlen::cpu
