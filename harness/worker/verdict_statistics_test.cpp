// What is measured of a tensor's errors, on numbers that can be counted by hand.
#include "harness/worker/verdict_statistics.hpp"

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "harness/attention/error_model.hpp"
#include "harness/worker/field_rules.hpp"

namespace attnbench {
namespace {

Expected expected_of(const std::vector<double>& values, double variance = 1) {
  Expected x;
  x.value = at::tensor(values, at::kDouble).view({-1, 1, 1});
  x.variance = at::full_like(x.value, variance);
  return x;
}

/// (2 + 4)^2 / (2^2 / 2 + 4^2 / 1): of two rows with a freedom.
TEST(Samples, AreRowsByTheirEnergyAndFreedom) {
  Expected x;
  x.value = at::zeros({3, 1, 2}, at::kDouble);
  x.variance = at::full_like(x.value, 1.0);
  x.freedom = at::tensor({2.0, 1.0, 0.0}, at::kDouble).view({3, 1});
  const at::Tensor got = at::tensor({1.0, 1.0, 2.0, 0.0, 5.0, 5.0}, at::kDouble).view({3, 1, 2});
  EXPECT_EQ(measure_errors({{got, &x}}, Dtype::bf16).front().samples, 2);
  x.freedom.zero_();
  EXPECT_EQ(measure_errors({{got, &x}}, Dtype::bf16).front().samples, 0);
}

/// A value beside the largest number may be rounded to infinity: to that of its own sign.
TEST(Nonfinite, OfAnOverflowTheSignIsThatOfTheValue) {
  for (const double sign : {1.0, -1.0}) {
    Expected x = expected_of({sign * 65519}, 64);
    x.freedom = at::full_like(x.value, 1.0).squeeze(-1);
    const auto mismatches = [&](double got) {
      const at::Tensor result = at::tensor({got}, at::kDouble).view({-1, 1, 1});
      return measure_errors({{result, &x, 7}}, Dtype::fp16).front().nonfinite_mismatches;
    };
    EXPECT_EQ(mismatches(sign * INFINITY), 0);
    EXPECT_EQ(mismatches(-sign * INFINITY), 1);
    EXPECT_EQ(mismatches(NAN), 1);
  }
}

double distinct(const Expected& x) {
  const Expected other = expected_of({1.1, 1.1});
  return distinct_values({&other, &x, &other})[1];
}

TEST(DistinctValues, AreThoseThatRoundDifferently) {
  EXPECT_EQ(distinct(expected_of({0.1, 0.2, -0.4, 0.8})), 1);  // but for sign and a power of two
  EXPECT_EQ(distinct(expected_of({1.1, 1.2, 1.3, 1.7})), kInfinity);
  EXPECT_EQ(distinct(expected_of({1.1, 1.1, 1.3, 1.3})), 3);  // two pairs of the six are alike
  Expected x = expected_of({1.1, 1.1, 1.3});
  x.variance[0].zero_();  // 0 by the mask
  EXPECT_EQ(distinct(x), kInfinity);
  EXPECT_EQ(distinct(expected_of({})), kInfinity);
  std::vector<double> many(40000);
  for (size_t i = 0; i < many.size(); ++i) many[i] = 1 + 1e-4 * static_cast<double>(i / 100 % 400);
  EXPECT_NEAR(distinct(expected_of(many)), 400, 80);
}

TEST(FieldRules, SayWhatTheFieldsTestsWouldHaveSaid) {
  const Expected x = expected_of({1, 100, 0});
  const auto rules = [&](const std::vector<double>& got, const char* tensor, double eager) {
    const at::Tensor tokens = at::tensor(got, at::kDouble).view({-1, 1, 1});
    std::map<std::string, bool> passed;
    for (const auto& [name, rule] :
         field_rules(tensor, field_errors({{tokens, &x}}, Dtype::fp16, field_tolerances(Dtype::fp16)).front(), eager))
      passed[name] = rule.passed;
    return passed;
  };
  using Passed = std::map<std::string, bool>;
  EXPECT_EQ(rules({1, 100, 0}, "o", 0),
            (Passed{{"2x_eager", true}, {"assert_close", true}, {"cudnn_2e-2", true}, {"pytorch_test", true}}));
  EXPECT_EQ(rules({1.01, 100, 0}, "o", 0.003),  // ten times 1e-3 of it, half of 2e-2, 3.3 times eager
            (Passed{{"2x_eager", false}, {"assert_close", false}, {"cudnn_2e-2", true}, {"pytorch_test", true}}));
  EXPECT_EQ(rules({1, 100, 0.03}, "dq", 0.001),
            (Passed{{"2x_eager", false}, {"assert_close", false}, {"cudnn_2e-2", false}, {"pytorch_test", true}}));
  EXPECT_EQ(rules({1, 100, 0.03}, "dk", 0.001)["pytorch_test"], false);
  EXPECT_EQ(rules({1, 100.05, 0}, "o", 0.03),
            (Passed{{"2x_eager", true}, {"assert_close", true}, {"cudnn_2e-2", true}, {"pytorch_test", true}}));
  for (const double broken : {static_cast<double>(NAN), kInfinity})
    EXPECT_EQ(rules({1, broken, 0}, "o", 1),
              (Passed{{"2x_eager", false}, {"assert_close", false}, {"cudnn_2e-2", false}, {"pytorch_test", false}}));
}

}  // namespace
}  // namespace attnbench
