// What is told of a tensor that failed, on tensors made by hand.
#include "harness/worker/describe_failure.hpp"

#include <cmath>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

namespace attnbench {
namespace {

/// 40 tokens in two sequences, 2 heads, 8 channels; all expected values are 1, with sigma 1/16.
struct Ones {
  TokenShape shape{{0, 30, 40}, 2, 8};
  Expected expected;
  at::Tensor got;
  FailureContext context{Dtype::bf16, 6.5, 0.5, 2, false};
  Ones() {
    const at::Tensor ones = at::ones({40, 2, 8}, at::kDouble);
    expected.value = ones;
    expected.variance = ones / 256;
    expected.freedom = at::ones({40, 2}, at::kDouble);
    got = ones.clone();
  }
  TensorFailure describe() const {
    return describe_failure(got, expected, shape, measure_errors({{got, &expected, context.z_limit}}, context.dtype).front(),
                            context);
  }
};

TEST(DescribeFailure, TellsHowFarOffInUnitsOfTheDtype) {
  Ones t;
  t.got[7][1][3] = 2;
  const TensorFailure failure = t.describe();
  EXPECT_EQ(failure.ulp_p50, 0);
  EXPECT_EQ(failure.ulp_max, 128) << "bf16 at 1 has a spacing of 2^-7";
  EXPECT_EQ(failure.first_got, 2);
  EXPECT_EQ(failure.first_expected, 1);
  EXPECT_EQ(failure.first_sigma, 1.0 / 16);
  EXPECT_EQ(failure.worst_sigma, 1.0 / 16);
  EXPECT_DOUBLE_EQ(failure.rms_z, std::sqrt(256.0 / 640));
  EXPECT_DOUBLE_EQ(failure.rms_ratio, failure.rms_z / 0.5);
  EXPECT_EQ(failure.pattern.text, "a single element");
  EXPECT_EQ(failure.map.cells.at(1).at(7), 13) << "1 of 8 channels, in percent, rounded up";
}

TEST(DescribeFailure, TellsPercentilesAndTheGain) {
  Ones t;
  t.got.mul_(0.5);
  t.got[0].fill_(0.25);
  const TensorFailure failure = t.describe();
  EXPECT_EQ(failure.ulp_p50, 64);
  EXPECT_EQ(failure.ulp_p99, 96);
  EXPECT_EQ(failure.ulp_p999, 96);
  EXPECT_NEAR(failure.gain, -0.5 - 0.25 / 40, 1e-12);
  EXPECT_EQ(failure.pattern.text, "every element");
}

TEST(DescribeFailure, AnExpectedValueBelowSigmaHasTheSpacingOfSigma) {
  Ones t;
  t.expected.value.mul_(1e-30);
  t.got = t.expected.value.clone();
  t.got[7][1][3] = 1;
  EXPECT_EQ(t.describe().ulp_max, 2048) << "bf16 at 1/16 has a spacing of 2^-11";
}

TEST(DescribeFailure, CountsWhatIsNoError) {
  Ones t;
  t.got[29].fill_(NAN);
  t.got[39].zero_();
  t.got[0][0][0] = -INFINITY;
  const TensorFailure failure = t.describe();
  EXPECT_EQ(failure.nans, 16);
  EXPECT_EQ(failure.zeros, 16);
  EXPECT_EQ(failure.infinities, 1);
  EXPECT_TRUE(std::isinf(failure.ulp_max));
  EXPECT_EQ(failure.pattern.text, "the last query of every sequence");
  EXPECT_EQ(failure.pattern.explained, 32);
  EXPECT_EQ(failure.pattern.rows_hit, 5);
}

TEST(DescribeFailure, KnowsKeysThatNoQuerySees) {
  Ones t;
  t.context.over_keys = true;
  for (at::Tensor* x : {&t.expected.value, &t.expected.variance, &t.got}) x->narrow(0, 20, 10).zero_();
  t.got.narrow(0, 20, 10).fill_(1e-9);
  const TensorFailure failure = t.describe();
  EXPECT_EQ(failure.pattern.text, "keys that no query sees of every sequence");
  EXPECT_EQ(failure.pattern.tokens, "unseen");
}

TEST(DescribeFailure, MapsSmallErrorsWhereNoElementIsBad) {
  Ones t;
  t.got.narrow(0, 0, 30).add_(3.0 / 16);
  const TensorFailure failure = t.describe();
  EXPECT_EQ(failure.pattern.text, "");
  EXPECT_EQ(failure.map.measure, "rms_z");
  EXPECT_EQ(failure.map.cells.at(0).at(0), 3);
  EXPECT_EQ(failure.map.cells.at(2).at(0), 0);
}

}  // namespace
}  // namespace attnbench
