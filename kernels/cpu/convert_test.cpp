#include "kernels/cpu/convert.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

namespace attnbench::flash_varlen::cpu {
namespace {

struct Format {
  const char* name;
  Type type;
  int fraction_bits, bias;
};

const Format kFormats[] = {{"bf16", Type::bf16, 7, 127}, {"fp16", Type::fp16, 10, 15}};

int exponent_field(const Format& format, uint16_t pattern) {
  return (pattern & 0x7fff) >> format.fraction_bits;
}

int largest_exponent(const Format& format) {
  return (1 << (15 - format.fraction_bits)) - 1;
}

/// The value of a pattern by the definition of the format.
double value_of(const Format& format, uint16_t pattern) {
  const int exponent = exponent_field(format, pattern);
  const int fraction = pattern & ((1 << format.fraction_bits) - 1);
  const double sign = pattern & 0x8000 ? -1 : 1;
  if (exponent == largest_exponent(format)) {
    return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  }
  const int significand = exponent ? fraction + (1 << format.fraction_bits) : fraction;
  return sign * std::ldexp(significand, std::max(exponent, 1) - format.bias - format.fraction_bits);
}

uint16_t narrow(const Format& format, float x) {
  uint16_t pattern;
  from_fp32(format.type, &x, 1, 1, reinterpret_cast<std::byte*>(&pattern));
  return pattern;
}

std::vector<uint16_t> all_patterns() {
  std::vector<uint16_t> patterns(1 << 16);
  for (size_t i = 0; i < patterns.size(); ++i) patterns[i] = uint16_t(i);
  return patterns;
}

TEST(Convert, every_pattern_widens_to_its_value_and_comes_back) {
  const auto patterns = all_patterns();
  for (const Format& format : kFormats) {
    std::vector<float> wide(patterns.size());
    to_fp32(format.type, reinterpret_cast<const std::byte*>(patterns.data()), patterns.size(), 1, wide.data());
    std::vector<uint16_t> back(patterns.size());
    from_fp32(format.type, wide.data(), wide.size(), 1, reinterpret_cast<std::byte*>(back.data()));
    for (const uint16_t pattern : patterns) {
      const double expected = value_of(format, pattern);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(wide[pattern])) << format.name << " " << pattern;
        ASSERT_TRUE(std::isnan(value_of(format, back[pattern]))) << format.name << " " << pattern;
        ASSERT_EQ(back[pattern] & 0x8000, pattern & 0x8000) << format.name << " " << pattern;
      } else {
        ASSERT_EQ(wide[pattern], expected) << format.name << " " << pattern;
        ASSERT_EQ(std::signbit(wide[pattern]), std::signbit(expected)) << format.name << " " << pattern;
        ASSERT_EQ(back[pattern], pattern) << format.name;
      }
    }
  }
}

TEST(Convert, numbers_between_two_neighbours_go_to_the_nearest_and_ties_to_even) {
  for (const Format& format : kFormats) {
    const int infinity = largest_exponent(format) << format.fraction_bits;
    for (int below = 0; below < infinity; ++below) {
      const double low = value_of(format, uint16_t(below));
      // The number after the largest finite one, were there one more exponent: from its middle on all is infinity.
      const double high =
          below + 1 < infinity ? value_of(format, uint16_t(below + 1)) : std::ldexp(1, largest_exponent(format) - format.bias);
      const float middle = float((low + high) / 2);
      if (middle != (low + high) / 2) continue;  // bf16 subnormals: fp32 has no number in between
      const int even = below % 2 == 0 ? below : below + 1;
      ASSERT_EQ(narrow(format, middle), even) << format.name << " " << below;
      ASSERT_EQ(narrow(format, std::nextafter(middle, 0.f)), below) << format.name;
      ASSERT_EQ(narrow(format, std::nextafter(middle, HUGE_VALF)), below + 1) << format.name;
      ASSERT_EQ(narrow(format, -middle), even | 0x8000) << format.name;
    }
    EXPECT_EQ(narrow(format, HUGE_VALF), infinity) << format.name;
    EXPECT_EQ(narrow(format, -HUGE_VALF), infinity | 0x8000) << format.name;
    EXPECT_TRUE(std::isnan(value_of(format, narrow(format, std::numeric_limits<float>::quiet_NaN())))) << format.name;
  }
}

TEST(Convert, a_nan_whose_payload_would_round_away_stays_nan) {
  for (const uint32_t word : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    float nan;
    std::memcpy(&nan, &word, sizeof nan);
    for (const Format& format : kFormats) {
      EXPECT_TRUE(std::isnan(value_of(format, narrow(format, nan)))) << format.name << " " << word;
    }
  }
}

TEST(Convert, rows_of_any_length_are_scaled_and_touch_nothing_else) {
  for (const Type type : {Type::bf16, Type::fp16, Type::fp32}) {
    const int64_t bytes = size_of(type);
    for (int64_t count = 1; count <= 40; ++count) {
      std::vector<float> numbers(count), wide(count + 1, -1.f);
      for (int64_t i = 0; i < count; ++i) numbers[i] = float(i - 7);
      std::vector<std::byte> narrow((count + 1) * bytes + 1, std::byte{0x5a});  // an odd address
      from_fp32(type, numbers.data(), count, 0.5f, narrow.data() + 1);
      to_fp32(type, narrow.data() + 1, count, 4, wide.data());
      for (int64_t i = 0; i < count; ++i) ASSERT_EQ(wide[i], 2 * numbers[i]) << count << " " << i;
      ASSERT_EQ(wide[count], -1.f) << count;
      for (int64_t i = 0; i < bytes; ++i) ASSERT_EQ(narrow[1 + count * bytes + i], std::byte{0x5a}) << count;
    }
  }
}

}  // namespace
}  // namespace attnbench::flash_varlen::cpu
