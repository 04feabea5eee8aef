// Functions of one number: rounding as the hardware rounds, every number of the low-precision dtypes, and a team of one thread.
#include "harness/attention/element.hpp"

#include <cmath>
#include <limits>
#include <utility>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

namespace attnbench {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

/// The same number, or both NaN.
bool is_same(float a, float b) {
  return a == b ? std::signbit(a) == std::signbit(b) : std::isnan(a) && std::isnan(b);
}

TEST(RoundTo, TiesGoToEven) {
  EXPECT_EQ(round_to(Dtype::bf16, 1 + 0x1p-8f), 1);  // between 1 and 1 + 2^-7
  EXPECT_EQ(round_to(Dtype::bf16, 1 + 3 * 0x1p-8f), 1 + 2 * 0x1p-7f);
  EXPECT_EQ(round_to(Dtype::bf16, -1 - 0x1.02p-8f), -1 - 0x1p-7f);
  EXPECT_EQ(round_to(Dtype::fp16, 1 + 0x1p-11f), 1);
  EXPECT_EQ(round_to(Dtype::fp16, 1 + 3 * 0x1p-11f), 1 + 2 * 0x1p-10f);
  EXPECT_EQ(round_to(Dtype::fp32, 1 + 0x1p-23f), 1 + 0x1p-23f);
}

TEST(RoundTo, KnowsTheEndsOfTheDtype) {
  EXPECT_EQ(round_to(Dtype::fp16, 65519.0f), 65504);
  EXPECT_EQ(round_to(Dtype::fp16, 65520.0f), kInf);
  EXPECT_EQ(round_to(Dtype::bf16, -std::numeric_limits<float>::max()), -kInf);
  EXPECT_EQ(round_to(Dtype::fp16, 0x1.8p-24f), 2 * 0x1p-24f);  // between two subnormals, to even
  EXPECT_EQ(round_to(Dtype::fp16, 0x1p-25f), 0);
  for (Dtype dtype : {Dtype::bf16, Dtype::fp16, Dtype::fp32}) {
    EXPECT_EQ(round_to(dtype, -kInf), -kInf);
    EXPECT_TRUE(std::isnan(round_to(dtype, std::numeric_limits<float>::quiet_NaN())));
  }
}

TEST(RoundTo, RoundsAsLibTorchDoes) {
  uint32_t bits = 1;
  for (int i = 0; i < 1000000; ++i) {
    bits = bits * 1664525u + 1013904223u;
    float x;
    memcpy(&x, &bits, sizeof x);
    ASSERT_PRED2(is_same, round_to(Dtype::bf16, x), static_cast<float>(c10::BFloat16(x))) << x;
    ASSERT_PRED2(is_same, round_to(Dtype::fp16, x), static_cast<float>(c10::Half(x))) << x;
    x = std::ldexp(1 + std::fmod(std::fabs(x), 1.0f), static_cast<int>(bits >> 8 & 63) - 32);  // in the range of fp16
    ASSERT_PRED2(is_same, round_to(Dtype::fp16, x), static_cast<float>(c10::Half(x))) << x;
  }
}

TEST(Larger, IsNanWhereOneOfTheTwoIs) {
  EXPECT_TRUE(std::isnan(larger(NAN, 1.0f)) && std::isnan(larger(1.0f, NAN)));
  EXPECT_TRUE(std::isnan(larger<double>(NAN, 1)) && std::isnan(larger<double>(1, NAN)));
  EXPECT_EQ(larger(-1.0, 2.0), 2);
  EXPECT_EQ(larger(2.0, -1.0), 2);
}

TEST(BitsOf, IsTheInverseOfNumberOf) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    for (const auto& [dtype, quiet] : {std::pair(Dtype::bf16, 0x7fc0), std::pair(Dtype::fp16, 0x7e00)}) {
      const float number = number_of(dtype, half);
      ASSERT_EQ(bits_of(dtype, number), std::isnan(number) ? quiet : half) << bits;
    }
  }
}

TEST(NumberOf, KnowsEveryNumber) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    ASSERT_PRED2(is_same, number_of(Dtype::bf16, half), static_cast<float>(c10::BFloat16(half, c10::BFloat16::from_bits())))
        << bits;
    ASSERT_PRED2(is_same, number_of(Dtype::fp16, half), static_cast<float>(c10::Half(half, c10::Half::from_bits()))) << bits;
  }
}

/// Every number of a low-precision dtype and its neighbour; bf16 from where its spacing is the smallest that is told.
TEST(SpacingOf, IsTheDistanceOfNeighbours) {
  for (uint16_t bits = 0; bits < 0x7bff; ++bits) {
    const double x = number_of(Dtype::fp16, bits), next = number_of(Dtype::fp16, bits + 1);
    ASSERT_EQ(spacing_of(Dtype::fp16).at(-x), next - x) << bits;
  }
  for (uint16_t bits = 0x0400; bits < 0x7f7f; ++bits) {
    const double x = number_of(Dtype::bf16, bits), next = number_of(Dtype::bf16, bits + 1);
    ASSERT_EQ(spacing_of(Dtype::bf16).at(x), next - x) << bits;
    ASSERT_EQ(spacing_of(Dtype::bf16).at((x + next) / 2), next - x) << "between them, " << bits;
  }
  for (int exponent = -103; exponent < 127; ++exponent) {
    const float x = std::ldexp(1.3f, exponent);
    ASSERT_EQ(spacing_of(Dtype::fp32).at(x), static_cast<double>(std::nextafter(x, kInf)) - x) << exponent;
  }
  EXPECT_EQ(spacing_of(Dtype::bf16).at(0), 0x1p-126);
  EXPECT_EQ(spacing_of(Dtype::fp32).at(0x1p-149), 0x1p-126);
}

TEST(Numbers, AreReadInTheirDtype) {
  const double doubles[] = {1, -2.5};
  const float floats[] = {1, -2.5f};
  const uint16_t halves[] = {0x3c00, 0xc100};
  EXPECT_EQ((Numbers{doubles, true}.at(1)), -2.5);
  EXPECT_EQ((Numbers{floats, false, Dtype::fp32}.at(1)), -2.5);
  EXPECT_EQ((Numbers{halves, false, Dtype::fp16}.at(1)), -2.5);
}

TEST(EffectiveSources, AreAsManyAsAreEqual) {
  EXPECT_EQ(effective_sources(5, 5, 64), 5);
  EXPECT_EQ(effective_sources(100, 100, 64), 64) << "no more than there are channels";
  EXPECT_EQ(effective_sources(1, 4, 64), 1) << "one at least";
  EXPECT_EQ(effective_sources(0, 0, 64), 1) << "of nothing";
}

struct SumOfRows {
  const double* numbers;
  double *sums, *largest;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t row) const {
    double sum = 0, most = -INFINITY;
    team.each(3, [&](int64_t i) {
      sum += numbers[3 * row + i];
      most = numbers[3 * row + i] > most || std::isnan(numbers[3 * row + i]) ? numbers[3 * row + i] : most;
    });
    sum = team.sum(sum), most = team.max(most);
    if (team.writes()) sums[row] = sum, largest[row] = most;
  }
};

TEST(RowTeam, WorksOnEveryRow) {
  const double numbers[] = {1, 2, 3, -4, -5, -6};
  double sums[2] = {}, largest[2] = {};
  for_each_row(/*on_gpu=*/false, 2, 3, SumOfRows{numbers, sums, largest});
  EXPECT_EQ(sums[0], 6);
  EXPECT_EQ(sums[1], -15);
  EXPECT_EQ(largest[0], 3);
  EXPECT_EQ(largest[1], -4);
}

}  // namespace
}  // namespace attnbench
