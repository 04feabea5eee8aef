#include "kernels/cpu/exp.hpp"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace attnbench::flash_varlen::cpu {
namespace {

float exp_of(float x) {
  float lanes[kLanes];
  store(lanes, exp(broadcast(x)));
  for (int64_t lane = 1; lane < kLanes; ++lane) {
    EXPECT_TRUE(lanes[lane] == lanes[0] || std::isnan(lanes[0])) << x << " in lane " << lane;
  }
  return lanes[0];
}

TEST(Exp, normal_results_are_within_one_and_a_half_ulp) {
  double worst = 0;
  const auto measure = [&](float x) {
    const double expected = std::exp(double(x));
    const double ulp = std::ldexp(1, std::ilogb(expected) - 23);
    const double error = std::abs(exp_of(x) - expected) / ulp;
    ASSERT_TRUE(error <= 1.5) << x << ": " << error << " ulp";
    worst = std::max(worst, error);
  };
  for (int step = 0; step <= 2'000'000; ++step) measure(float(-87.33 + step * ((88.72 + 87.33) / 2'000'000)));
  for (float x = 1e-30f; x < 1; x *= 1.01f) measure(x), measure(-x);
  RecordProperty("worst_ulp", std::to_string(worst));
  EXPECT_GT(worst, 0.4) << "the measurement itself is suspect";
}

TEST(Exp, subnormal_results_are_right_to_one_unit) {
  for (float x = -87.34f; x > -106; x -= 0.003f) {
    ASSERT_TRUE(std::abs(exp_of(x) - std::exp(double(x))) <= std::ldexp(1, -149)) << x;
  }
}

TEST(Exp, special_values) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(exp_of(0), 1.f);
  EXPECT_EQ(exp_of(-0.f), 1.f);
  EXPECT_EQ(exp_of(-infinity), 0.f);
  EXPECT_EQ(exp_of(-104), 0.f);
  EXPECT_EQ(exp_of(-1e30f), 0.f);
  EXPECT_EQ(exp_of(infinity), infinity);
  EXPECT_EQ(exp_of(88.73f), infinity);
  EXPECT_EQ(exp_of(1e30f), infinity);
  EXPECT_TRUE(std::isnan(exp_of(std::numeric_limits<float>::quiet_NaN())));
}

}  // namespace
}  // namespace attnbench::flash_varlen::cpu
