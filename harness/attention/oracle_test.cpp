// The two float64 oracles, written apart, hold each other: values and error model.
#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "harness/attention/emulator.hpp"
#include "harness/attention/oracle.hpp"
#include "harness/attention/test_reference.hpp"

namespace attnbench {
namespace {

using namespace judge_test;

class TwoOracles : public testing::TestWithParam<std::string> {};

TEST_P(TwoOracles, AgreeOnValuesAndSigmas) {
  for (const Profile& profile : profiles()) {
    for (const char* dtype : {"bf16", "fp16", "fp32"}) {
      const std::string line = GetParam() + " dtype=" + dtype + " seed=5";
      const Conventions conventions = conventions_of(profile);
      const Case c = parse_case(line);
      if (c.problem.has_score_options() && profile.rounds_scores) continue;  // refused
      const Inputs inputs = make_inputs(c, conventions.poison);
      const Reference a = make_reference(OracleKind::eigen, c, inputs, profile, conventions.empty_row);
      const Reference b = make_reference(OracleKind::torch, c, inputs, profile, conventions.empty_row);
      const std::string what = line + " " + profile.name + " ";
      expect_same(a, b, what);
      const Outputs emulated = emulate(c, inputs, profile, conventions.empty_row);
      const auto x = given_output(OracleKind::eigen, c, inputs, profile, conventions.empty_row, a, emulated.o);
      const auto y = given_output(OracleKind::torch, c, inputs, profile, conventions.empty_row, b, emulated.o);
      expect_same(x.dq, y.dq, what + "dq given o");
      expect_same(x.dk, y.dk, what + "dk given o");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, TwoOracles, testing::ValuesIn(shapes()));
INSTANTIATE_TEST_SUITE_P(Options, TwoOracles, testing::ValuesIn(option_shapes()));

TEST(TwoOraclesOnTies, CountTheSameDistinctScores) {
  const Case c = parse_case("attention hq=1 lq=256 d=64 fill=sparse_int");
  const Inputs inputs = make_inputs(c, Conventions::Poison::nan);
  const double eigen = make_reference(OracleKind::eigen, c, inputs, flash(), Conventions::EmptyRow::zero).distinct_scores;
  EXPECT_EQ(eigen, make_reference(OracleKind::torch, c, inputs, flash(), Conventions::EmptyRow::zero).distinct_scores);
  EXPECT_LT(eigen, 200);
}

TEST(LibTorchOracle, AnswersAboutHeadsTogetherAsOneByOne) {
  const Case c = parse_case("attention hq=3 hkv=3 lq=70 lk=50 d=32 mask=causal dtype=fp16");
  const Inputs inputs = make_inputs(c, Conventions::Poison::finite);
  const auto heads_of = [](const at::Tensor& t) { return t.to(at::kDouble).transpose(0, 1).contiguous(); };
  for (const Profile& profile : profiles()) {
    HeadProblem together;
    together.q = heads_of(inputs.q), together.k = heads_of(inputs.k);
    together.v = heads_of(inputs.v), together.dout = heads_of(inputs.dout);
    together.heads = 3;
    together.queries = 70;
    together.keys = together.stored_keys = 50;
    together.d = together.dv = 32;
    together.problem = &c.problem;
    together.scale = inputs.scale;
    together.empty_row = Conventions::EmptyRow::uniform;
    together.rounding = rounding_of(profile, c.problem, inputs.scale);
    const HeadAnswer all = torch_heads(together);
    for (int64_t head = 0; head < 3; ++head) {
      HeadProblem alone = together;
      alone.heads = 1;
      for (at::Tensor* t : {&alone.q, &alone.k, &alone.v, &alone.dout}) *t = t->narrow(0, head, 1);
      const HeadAnswer one = torch_heads(alone);
      for (const at::Tensor HeadAnswer::*t :
           {&HeadAnswer::o, &HeadAnswer::o_variance, &HeadAnswer::lse, &HeadAnswer::lse_sigma, &HeadAnswer::dq,
            &HeadAnswer::dq_variance, &HeadAnswer::dq_allowance, &HeadAnswer::o_freedom, &HeadAnswer::dq_freedom, &HeadAnswer::dk,
            &HeadAnswer::dk_variance, &HeadAnswer::dk_allowance, &HeadAnswer::dv, &HeadAnswer::dv_variance, &HeadAnswer::p2,
            &HeadAnswer::p4, &HeadAnswer::ds2, &HeadAnswer::ds4, &HeadAnswer::score_samples})
        EXPECT_LE(largest_relative_difference((all.*t).narrow(0, head, 1), one.*t), 1e-9) << profile.name << " head " << head;
    }
  }
}

TEST(TwoOraclesOnNanRows, PropagateNanAlike) {
  const Case c = parse_case("attention hq=1 lq=9 lk=6 d=32 mask=causal");
  const Inputs inputs = make_inputs(c, Conventions::Poison::nan);
  Conventions conventions;
  conventions.empty_row = Conventions::EmptyRow::nan;
  for (const OracleKind kind : {OracleKind::eigen, OracleKind::torch}) {
    const Reference r = make_reference(kind, c, inputs, inside(), conventions.empty_row);
    EXPECT_TRUE(std::isnan(numbers(r.o.value)[0])) << r.oracle;
    EXPECT_TRUE(std::isfinite(numbers(r.o.value)[3 * 32])) << r.oracle;
    EXPECT_TRUE(std::isnan(numbers(r.dq.value)[0])) << r.oracle;
    EXPECT_TRUE(std::isnan(numbers(r.dv.value)[0])) << r.oracle;
  }
}

}  // namespace
}  // namespace attnbench
