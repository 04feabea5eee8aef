// The numbers of the error model by hand: spacings, and what a profile makes of a problem.
#include "harness/attention/error_model.hpp"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "harness/attention/test_reference.hpp"

namespace attnbench {
namespace {

using namespace judge_test;

TEST(Ulp, IsTheDistanceOfNeighbours) {
  EXPECT_EQ(ulp(Dtype::bf16, 1), 0x1p-7);
  EXPECT_EQ(ulp(Dtype::fp16, -1.99), 0x1p-10);
  EXPECT_EQ(ulp(Dtype::fp16, 2), 0x1p-9);
  EXPECT_EQ(ulp(Dtype::fp32, 0.75), 0x1p-24);
  EXPECT_EQ(ulp(Dtype::fp16, 0), 0x1p-24);
  EXPECT_EQ(ulp(Dtype::bf16, 1e-300), 0x1p-126);
  EXPECT_EQ(rounding_variance(Dtype::fp16, 1), 0x1p-20 / 12);
}

TEST(RoundingOf, Fp32RoundsNothing) {
  const Problem problem = parse_case("attention hq=4 hkv=2 d=64 lq=65 dtype=fp32").problem;
  for (const Profile& profile : profiles()) {
    const Rounding r = rounding_of(profile, problem);
    EXPECT_FALSE(r.p || r.ds || r.scores || r.ds_from_rounded_p || r.scales_ds) << profile.name;
    EXPECT_EQ(r.accumulation, 0x1p-48) << profile.name;
  }
}

TEST(RoundingOf, ScaledDsHasItsSmallestErrorFartherUp) {
  const auto rounding = [](const Profile& profile, const std::string& keys) {
    return rounding_of(profile, parse_case("attention d=64 lq=65 " + keys).problem);
  };
  EXPECT_EQ(rounding(flash(), "dtype=fp16").f_ds, 0x1p-25);
  EXPECT_EQ(rounding(scaled_ds(), "dtype=fp16").f_ds, 8 * 0x1p-25);
  EXPECT_EQ(rounding(scaled_ds(), "dtype=fp16 scale=-0.25").f_ds, 4 * 0x1p-25);
  EXPECT_TRUE(rounding(efficient(), "dtype=fp16").scales_ds);
  // Where it makes no difference: one yardstick serves both.
  EXPECT_EQ(rounding(scaled_ds(), "dtype=bf16"), rounding(flash(), "dtype=bf16"));
  EXPECT_EQ(rounding(scaled_ds(), "dtype=fp16 scale=0"), rounding(flash(), "dtype=fp16 scale=0"));
  Profile both = eager();
  both.scales_ds = true;
  EXPECT_EQ(rounding(both, "dtype=fp16"), rounding(eager(), "dtype=fp16"));
}

}  // namespace
}  // namespace attnbench
