// The two float64 oracles, written apart, hold each other: values and error model.
#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "harness/attention/emulator.hpp"
#include "harness/attention/reference_test_support.hpp"

namespace attnbench {
namespace {

using namespace judge_test;

/// Largest difference relative to the value, or to a billionth of the tensor's largest value where that is more.
double largest_relative_difference(const at::Tensor& one, const at::Tensor& other) {
  const std::vector<double> a = numbers(one), b = numbers(other);
  if (a.size() != b.size()) return INFINITY;
  double largest = 0, worst = 0;
  for (const double x : a)
    if (std::isfinite(x)) largest = std::max(largest, std::abs(x));
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
    const double difference = std::abs(a[i] - b[i]) / std::max(std::abs(a[i]), 1e-9 * largest);
    worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
  }
  return worst;
}

/// Values that cancel to about 0 have no relative accuracy: they are compared with what a kernel may be off.
double largest_difference_in_sigmas(const Expected& one, const Expected& other) {
  const std::vector<double> a = numbers(one.value), b = numbers(other.value), variance = numbers(one.variance);
  if (a.size() != b.size()) return INFINITY;
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) continue;
    const double difference = std::abs(a[i] - b[i]) / std::sqrt(variance[i]);
    worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
  }
  return worst;
}

void expect_same(const Expected& a, const Expected& b, const std::string& what) {
  EXPECT_LE(largest_difference_in_sigmas(a, b), 1e-4) << what;
  EXPECT_LE(largest_relative_difference(a.variance, b.variance), 1e-9) << what << " variance";
  EXPECT_LE(largest_relative_difference(a.allowance, b.allowance), 1e-9) << what << " allowance";
  EXPECT_LE(largest_relative_difference(a.freedom, b.freedom), 1e-9) << what << " freedom";
}

class TwoOracles : public testing::TestWithParam<std::string> {};

TEST_P(TwoOracles, AgreeOnValuesAndSigmas) {
  for (const Profile& profile : profiles()) {
    for (const char* dtype : {"bf16", "fp16", "fp32"}) {
      const std::string line = GetParam() + " dtype=" + dtype + " seed=5";
      const Conventions conventions = conventions_of(profile);
      const Case c = parse_case(line);
      const Inputs inputs = make_inputs(c, conventions.poison);
      const Reference a = make_reference(OracleKind::eigen, c, inputs, profile, conventions);
      const Reference b = make_reference(OracleKind::torch, c, inputs, profile, conventions);
      const std::string what = line + " " + profile.name + " ";
      expect_same(a.o, b.o, what + "o");
      expect_same(a.dq, b.dq, what + "dq");
      expect_same(a.dk, b.dk, what + "dk");
      expect_same(a.dv, b.dv, what + "dv");
      EXPECT_LE(largest_relative_difference(a.lse.value, b.lse.value), 1e-12) << what << "lse";
      EXPECT_EQ(a.distinct_scores, b.distinct_scores) << what;
      EXPECT_EQ(a.has_power, b.has_power) << what;
      const Outputs emulated = emulate(c, inputs, profile, conventions);
      const auto x = given_output(OracleKind::eigen, c, inputs, profile, conventions, a, emulated.o);
      const auto y = given_output(OracleKind::torch, c, inputs, profile, conventions, b, emulated.o);
      expect_same(x.dq, y.dq, what + "dq given o");
      expect_same(x.dk, y.dk, what + "dk given o");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, TwoOracles, testing::ValuesIn(shapes()));

TEST(TwoOraclesOnTies, CountTheSameDistinctScores) {
  const Case c = parse_case("attention hq=1 lq=256 d=64 fill=sparse_int");
  const Inputs inputs = make_inputs(c, Conventions::Poison::nan);
  const double eigen = make_reference(OracleKind::eigen, c, inputs, flash(), {}).distinct_scores;
  EXPECT_EQ(eigen, make_reference(OracleKind::torch, c, inputs, flash(), {}).distinct_scores);
  EXPECT_LT(eigen, 200);
}

TEST(TwoOraclesOnNanRows, PropagateNanAlike) {
  const Case c = parse_case("attention hq=1 lq=9 lk=6 d=32 mask=causal");
  const Inputs inputs = make_inputs(c, Conventions::Poison::nan);
  Conventions conventions;
  conventions.empty_row = Conventions::EmptyRow::nan;
  for (const OracleKind kind : {OracleKind::eigen, OracleKind::torch}) {
    const Reference r = make_reference(kind, c, inputs, inside(), conventions);
    EXPECT_TRUE(std::isnan(numbers(r.o.value)[0])) << r.oracle;
    EXPECT_TRUE(std::isfinite(numbers(r.o.value)[3 * 32])) << r.oracle;
    EXPECT_TRUE(std::isnan(numbers(r.dq.value)[0])) << r.oracle;
    EXPECT_TRUE(std::isnan(numbers(r.dv.value)[0])) << r.oracle;
  }
}

}  // namespace
}  // namespace attnbench
