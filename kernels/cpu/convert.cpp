#include "kernels/cpu/convert.hpp"

#include <cstring>

#include "kernels/cpu/vector.hpp"

namespace attnbench::flash_varlen::cpu {
namespace {

using Half = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t))));

// Each type widens and narrows one vector of elements.
struct Bf16 {
  using Element = uint16_t;
  static ATTNBENCH_INLINE Float widen(const std::byte* from) {
    Half half;
    std::memcpy(&half, from, sizeof half);
    return bits<Float>(__builtin_convertvector(half, Word) << 16);
  }
  static ATTNBENCH_INLINE void narrow(Float x, std::byte* to) {
    const Word word = bits<Word>(x);
    const Word rounded = word + (0x7fffu + (word >> 16 & 1u));
    const Word nan = word | 0x400000u;  // rounding could carry a NaN into infinity
    const Half half = __builtin_convertvector((x != x ? nan : rounded) >> 16, Half);
    std::memcpy(to, &half, sizeof half);
  }
};

struct Fp16 {
  using Element = uint16_t;
#if defined(__AVX512F__)
  static ATTNBENCH_INLINE Float widen(const std::byte* from) {
    return _mm512_maskz_cvtph_ps(kAllLanes, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static ATTNBENCH_INLINE void narrow(Float x, std::byte* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtps_ph(kAllLanes, x, _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(__AVX2__) && defined(__F16C__)
  static ATTNBENCH_INLINE Float widen(const std::byte* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static ATTNBENCH_INLINE void narrow(Float x, std::byte* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  static ATTNBENCH_INLINE Float widen(const std::byte* from) {
    Half half;
    std::memcpy(&half, from, sizeof half);
    const Word word = __builtin_convertvector(half, Word);
    const Word magnitude = word & 0x7fffu;
    // Exponent and fraction moved to their place in fp32: 2^-112 too small, and so are subnormals, exactly.
    const Float scaled = bits<Float>(magnitude << 13) * 0x1p112f;
    const Float finite_or_special = magnitude >= 0x7c00u ? bits<Float>(magnitude << 13 | 0x7f800000u) : scaled;
    const Word quiet = (magnitude > 0x7c00u ? Word{} + 0x400000u : Word{});
    return bits<Float>(bits<Word>(finite_or_special) | quiet | (word & 0x8000u) << 16);
  }
  static ATTNBENCH_INLINE void narrow(Float x, std::byte* to) {
    const Word sign = bits<Word>(x) & 0x80000000u;
    const Word magnitude = bits<Word>(x) ^ sign;
    // Normal results: rebias the exponent by -112 and round the 13 bits that go; a carry is right, into infinity too.
    const Word normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    // Subnormal results: adding 1/2 leaves them, rounded to multiples of 2^-24, in the low bits of the fraction.
    const Word subnormal = bits<Word>(bits<Float>(magnitude) + 0.5f) - bits<Word>(broadcast(0.5f));
    const Word nan = 0x7e00u | (magnitude >> 13 & 0x1ffu);
    Word result = magnitude < (113u << 23) ? subnormal : normal;
    result = magnitude >= (143u << 23) ? Word{} + 0x7c00u : result;  // 2^16 and above
    result = magnitude > 0x7f800000u ? nan : result;
    const Half half = __builtin_convertvector(result | sign >> 16, Half);
    std::memcpy(to, &half, sizeof half);
  }
#endif
};

struct Fp32 {
  using Element = float;
  static ATTNBENCH_INLINE Float widen(const std::byte* from) {
    Float x;
    std::memcpy(&x, from, sizeof x);
    return x;
  }
  static ATTNBENCH_INLINE void narrow(Float x, std::byte* to) { std::memcpy(to, &x, sizeof x); }
};

// The last elements go through a buffer, so that nothing beyond the row is read or written.
template <class Format>
void widen_row(const std::byte* from, int64_t count, float scale, float* to) {
  constexpr int64_t bytes = sizeof(typename Format::Element);
  int64_t at = 0;
  for (; at + kLanes <= count; at += kLanes) store(to + at, Format::widen(from + at * bytes) * scale);
  if (at == count) return;
  std::byte rest[kLanes * bytes] = {};
  std::memcpy(rest, from + at * bytes, (count - at) * bytes);
  const Float last = Format::widen(rest) * scale;
  std::memcpy(to + at, &last, (count - at) * sizeof(float));
}

template <class Format>
void narrow_row(const float* from, int64_t count, float scale, std::byte* to) {
  constexpr int64_t bytes = sizeof(typename Format::Element);
  int64_t at = 0;
  for (; at + kLanes <= count; at += kLanes) Format::narrow(load(from + at) * scale, to + at * bytes);
  if (at == count) return;
  Float last{};
  std::memcpy(&last, from + at, (count - at) * sizeof(float));
  std::byte rest[kLanes * bytes];
  Format::narrow(last * scale, rest);
  std::memcpy(to + at * bytes, rest, (count - at) * bytes);
}

}  // namespace

void to_fp32(Type type, const std::byte* from, int64_t count, float scale, float* to) {
  switch (type) {
    case Type::bf16:
      return widen_row<Bf16>(from, count, scale, to);
    case Type::fp16:
      return widen_row<Fp16>(from, count, scale, to);
    case Type::fp32:
      return widen_row<Fp32>(from, count, scale, to);
  }
  __builtin_unreachable();  // check_shape refuses other types
}

void from_fp32(Type type, const float* from, int64_t count, float scale, std::byte* to) {
  switch (type) {
    case Type::bf16:
      return narrow_row<Bf16>(from, count, scale, to);
    case Type::fp16:
      return narrow_row<Fp16>(from, count, scale, to);
    case Type::fp32:
      return narrow_row<Fp32>(from, count, scale, to);
  }
  __builtin_unreachable();  // check_shape refuses other types
}

}  // namespace attnbench::flash_varlen::cpu
