// Right outputs pass, whatever the case; what a verdict says of them and of what failed. Defects: verdict_defects_test.cpp.
#include "harness/worker/verdict.hpp"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_scaled_dot_product_attention_math.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "harness/attention/emulator.hpp"
#include "harness/attention/test_reference.hpp"
#include "harness/worker/field_rules.hpp"
#include "harness/worker/test_judge.hpp"

namespace attnbench {
namespace {

using namespace judge_test;

class RightOutputs : public testing::TestWithParam<std::string> {};

TEST_P(RightOutputs, OfEveryProfilePass) {
  for (const Profile& profile : profiles()) {
    for (const char* dtype : {"bf16", "fp16", "fp32"}) {
      const JudgedCase b(GetParam() + " dtype=" + dtype + " seed=21", profile);
      const std::string what = GetParam() + " " + dtype + " " + profile.name;
      for (const Pass pass : {Pass::forward, Pass::backward}) {
        expect_passes(b.judge.judge(b.right, pass), what);
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Shapes, RightOutputs, testing::ValuesIn(shapes()));

TEST(RightOutputs, OfEveryFillAndManySeedsPass) {
  for (const char* fill : {"normal", "peaked", "shifted_negative", "deep_negative", "ramp", "mean_offset", "row_scale",
                           "sparse_int", "unit", "ones_v"}) {
    for (const std::string seed : {"1", "2"}) {
      for (const Profile& profile : {flash(), inside_from_output(), inside()}) {
        const JudgedCase b("attention hq=4 hkv=2 lq=96 d=64 dtype=fp16 mask=causal fill=" + std::string(fill) + " seed=" + seed,
                           profile);
        for (const Pass pass : {Pass::forward, Pass::backward})
          expect_passes(b.judge.judge(b.right, pass), std::string(fill) + " " + profile.name);
      }
    }
  }
}

void expect_right_outputs_pass(const std::vector<std::string>& lines) {
  for (const std::string& line : lines) {
    for (const Profile& profile : profiles()) {
      for (const char* dtype : {"bf16", "fp16", "fp32"}) {
        const JudgedCase b(line + " seed=31 dtype=" + dtype, profile);
        for (const Pass pass : {Pass::forward, Pass::backward}) {
          const Verdict verdict = b.judge.judge(b.right, pass);
          if (profile.rounds_scores && verdict.status == Status::mistrusted) continue;  // the eager model's scores are too large
          expect_passes(verdict, line + dtype + profile.name);
        }
      }
    }
  }
}

TEST(RightOutputs, WithOptionsOfTheScoresPass) {
  expect_right_outputs_pass(option_shapes());
}

TEST(RightOutputs, WithDropoutPass) {
  expect_right_outputs_pass(dropout_shapes());
}

TEST(RightOutputs, OfLibTorchsMathPass) {
  for (const char* dtype : {"bf16", "fp16", "fp32"}) {
    Conventions no_lse;
    no_lse.lse_empty = Conventions::LseEmpty::none;
    const JudgedCase b("attention hq=4 hkv=4 lq=100 d=64 mask=causal dtype=" + std::string(dtype), inside(), &no_lse);
    const auto heads_first = [](const at::Tensor& t) { return t.unsqueeze(0).transpose(1, 2); };
    const at::Tensor o = std::get<0>(at::_scaled_dot_product_attention_math(
        heads_first(b.inputs.q), heads_first(b.inputs.k), heads_first(b.inputs.v), {}, 0, true, {}, b.inputs.scale));
    Outputs outputs;
    outputs.o = o.transpose(1, 2).squeeze(0);
    expect_passes(b.judge.judge(outputs, Pass::forward), dtype);
  }
}

/// Every element of dV is 1/6: their roundings are one rounding, in each tensor.
TEST(RightOutputs, WhoseElementsAreAllEqualPass) {
  for (const Profile& profile : {flash(), inside_from_output(), inside()})
    for (const char* dtype : {"bf16", "fp16"}) {
      const JudgedCase b("attention b=2 hq=2 d=1 lq=1 lk=6 scale=0 dout=one_hot dtype=" + std::string(dtype), profile);
      const Verdict v = b.judge.judge(b.right, Pass::backward);
      expect_passes(v, profile.name + " " + dtype);
      EXPECT_EQ(b.judge.yardstick().scale(kValueGradient, "dv").distinct, 1);
    }
}

/// Equal P round alike; P of one key that are all below fp16's smallest number are all 0: errors of dV that add up.
TEST(RightOutputs, WhoseErrorsAreAlikePass) {
  for (const char* line :
       {"attention b=2 hq=20 hkv=5 d=64 lq=158 lk=15 dtype=fp16 layout=padded scale=0 seed=32522",
        "attention b=2 hq=20 hkv=5 d=64 lq=158 lk=15 dtype=fp16 layout=padded pad=holes scale=0 fill=deep_negative seed=32522",
        "attention hq=16 hkv=1 d=128 lq=31 lk=32 dtype=fp16 fill=shifted_negative dout=ones seed=6298"}) {
    const JudgedCase b(line, flash());
    const Verdict verdict = b.judge.judge(b.right, Pass::backward);
    expect_passes(verdict, line);
    for (const auto& [tensor, errors] : verdict.errors) EXPECT_EQ(errors.bad, 0) << tensor << " " << line;
  }
}

/// All P are 1 / lk: however far that is from a number of the dtype, dV may be as far off, and no farther.
TEST(RightOutputs, WhosePAreAllEqualPass) {
  for (const auto& [dtype, bits] : {std::pair{"bf16", 8}, {"fp16", 11}}) {
    int truncated_differ = 0;
    for (int lk = 33; lk < 55; ++lk) {
      const std::string line = fmt::format("attention b=8 hq=4 hkv=4 d=32 lq=8 lk={} dtype={} scale=0", lk, dtype);
      const JudgedCase b(line, flash());
      expect_passes(b.judge.judge(b.right, Pass::backward), line);
      const double p = 1.0 / lk, step = std::ldexp(1.0, std::ilogb(p) + 1 - bits);
      if (std::fmod(p, step) < 0.6 * step) continue;  // rounded down or, all but as near, up
      ++truncated_differ;
      Outputs x = b.copy();
      const at::Tensor dv = b.judge.yardstick().reference().dv.value * (std::floor(p / step) * step / p);
      x.dv = dv.view(x.dv.sizes()).to(at::kFloat).to(x.dv.scalar_type());
      expect_fails(b.judge.judge(x, Pass::backward), "dv", "bias");
    }
    EXPECT_GE(truncated_differ, 4) << dtype;
  }
}

/// Where fp16 has few digits left, a dS and s times it are rounded by as much, and s is small.
TEST(RightOutputs, AreRoundedWhereTheProfileSays) {
  const char* line = "attention hq=2 d=64 lq=65 dtype=fp16 fill=shifted_negative";
  const JudgedCase b(line, flash()), scaled(line, scaled_ds());
  expect_passes(b.judge.judge(b.right, Pass::backward), "dS");
  expect_passes(scaled.judge.judge(scaled.right, Pass::backward), "s dS");
  expect_fails(b.judge.judge(scaled.right, Pass::backward), "dk_given_o", "rms");
}

/// Else its RMS would widen a limit, or narrow it, by a factor that no implementation has.
TEST(OrdinaryErrors, AreThoseOfEachGatedTensor) {
  for (const Profile& profile : {flash(), efficient(), inside(), eager()}) {
    for (const char* line : {"attention hq=2 hkv=2 lq=128 d=64 fill=unit dout=ones", "attention hq=4 hkv=2 lq=200 d=64"}) {
      const JudgedCase b(line, profile);
      const Yardstick& y = b.judge.yardstick();
      const bool given_o = y.rounding().conditional();
      const std::vector<std::pair<const JudgedTensor*, std::string>> gated{{&kOutput, "o"},
                                                                           {&kValueGradient, "dv"},
                                                                           {&kQueryGradient, given_o ? "dq_given_o" : "dq"},
                                                                           {&kKeyGradient, given_o ? "dk_given_o" : "dk"}};
      for (const auto& [tensor, gated_as] : gated) {
        EXPECT_GT(y.scale(*tensor, gated_as).emulator_rms, 0.4) << line << " " << profile.name << " " << gated_as;
        EXPECT_LT(y.scale(*tensor, gated_as).emulator_rms, 1.3) << line << " " << profile.name << " " << gated_as;
      }
    }
  }
}

TEST(OrdinaryErrors, KnowHugeScoresWherePIsRounded) {
  const auto size = [](const Profile& profile, const std::string& fill) {
    const JudgedCase b("attention hq=1 lq=33 d=64 fill=" + fill, profile);
    return b.judge.yardstick().scale(kOutput, "o").huge_scores;
  };
  EXPECT_EQ(size(flash(), "deep_negative"), 64 * 65536.0 / 8);
  EXPECT_EQ(size(flash(), "shifted_negative"), 0);
  EXPECT_EQ(size(inside(), "deep_negative"), 0);
}

TEST(OrdinaryErrors, OfTiedScoresAreAsManyAsThereAreScores) {
  const JudgedCase b("attention hq=1 lq=256 d=64 fill=sparse_int");
  const Yardstick& y = b.judge.yardstick();
  ASSERT_LT(distinct_scores(y.reference()), 200);
  EXPECT_LE(y.scale(kOutput, "o").distinct, distinct_scores(y.reference()));
}

TEST(NoPower, AReferenceThatIsNotFiniteJudgesNobody) {
  const JudgedCase b("attention lq=8 d=16 scale=1e308", inside());
  const Verdict v = b.judge.judge(b.right, Pass::forward);
  EXPECT_EQ(v.status, Status::mistrusted);
  EXPECT_NE(v.reason.find("not finite"), std::string::npos) << v.reason;
}

TEST(GivenOutput, AWrongOFailsTheBackwardToo) {
  const JudgedCase b(kCausal);
  Outputs x = b.copy();
  x.o = at::zeros_like(x.o);
  expect_fails(b.judge.judge(x, Pass::backward), "o", "z");
}

TEST(GivenOutput, GradientsFollowTheKernelsOwnO) {
  // On [0, 1) data all rows of O round alike: gradients with D from the rounded O are right given that O only.
  const JudgedCase b("attention hq=2 hkv=2 lq=128 d=64 dtype=bf16 fill=unit dout=ones");
  expect_passes(b.judge.judge(b.right, Pass::backward), "D from the rounded O");
  Outputs x = b.copy();
  const Outputs exact_d = emulate(b.c, b.inputs, inside(), b.conventions.empty_row);
  x.dk = exact_d.dk;
  expect_fails(b.judge.judge(x, Pass::backward), "dk_given_o", "z");
}

TEST(Eager, IsHeldToWhatItsCoarselyRoundedScoresGive) {
  // Scores near -200 lie a whole unit apart in bf16: next to P without that rounding everything would look wrong.
  const JudgedCase b("attention hq=1 lq=64 d=64 dtype=bf16 fill=shifted_negative", eager());
  for (const Pass pass : {Pass::forward, Pass::backward}) expect_passes(b.judge.judge(b.right, pass), "eager");
  const JudgedCase scores_in_fp32("attention hq=1 lq=64 d=64 dtype=bf16 fill=shifted_negative", inside());
  Outputs x = b.copy();
  x.o = scores_in_fp32.right.o;
  expect_fails(b.judge.judge(x, Pass::forward), "o", "z");
  x = b.copy();
  x.dv[3][0] *= 1 + 0x1p-6;  // two ulp
  expect_fails(b.judge.judge(x, Pass::backward), "dv", "z");
}

TEST(FieldRule, SaysWhatTwiceEagerWouldHaveSaid) {
  const JudgedCase b(kCausal);
  const auto right = b.judge.judge(b.right, Pass::forward).errors.at("o").field_rules.at("2x_eager");
  EXPECT_TRUE(right.passed);
  Outputs x = b.copy();
  x.o[40][3][7] += 1;
  EXPECT_FALSE(b.judge.judge(x, Pass::forward).errors.at("o").field_rules.at("2x_eager").passed);
}

TEST(Failure, IsToldOfTheTensorsThatFailAlone) {
  const JudgedCase b(kCausal);
  Outputs x = b.copy();
  x.dq.narrow(0, 64, 64).select(1, 5).zero_();
  const Verdict v = b.judge.judge(x, Pass::backward);
  for (const char* passed : {"o", "dv", "dk_given_o"}) EXPECT_FALSE(v.errors.at(passed).failure) << passed;
  ASSERT_TRUE(v.errors.at("dq_given_o").failure);
  const TensorFailure& failure = *v.errors.at("dq_given_o").failure;
  EXPECT_EQ(failure.pattern.text, "queries 64..127 (tile 1 of 64), the last head (5)");
  EXPECT_EQ(failure.zeros, v.errors.at("dq_given_o").bad);
  EXPECT_GT(failure.rms_ratio, 2);
  EXPECT_EQ(failure.map.cells.size(), 6u);
  for (const auto& [tensor, errors] : b.judge.judge(b.right, Pass::forward).errors) EXPECT_FALSE(errors.failure) << tensor;
}

TEST(Failure, OfTheLseIsInUnitsOfItsSigma) {
  const JudgedCase b(kCausal);
  Outputs x = b.copy();
  x.lse[7][2] += 1;
  const Verdict v = b.judge.judge(x, Pass::forward);
  EXPECT_FALSE(v.errors.at("o").failure);
  ASSERT_TRUE(v.errors.at("lse").failure);
  EXPECT_EQ(v.errors.at("lse").failure->pattern.text, "a single element");
  EXPECT_NEAR(v.errors.at("lse").failure->first_got - v.errors.at("lse").failure->first_expected, 1, 1e-4);
  EXPECT_NEAR(1 / v.errors.at("lse").failure->worst_sigma, v.errors.at("lse").max_z, 1e-3 * v.errors.at("lse").max_z);
}

TEST(CompareOutputs, MeasuresRealTokensOnly) {
  const JudgedCase b("attention hq=2 hkv=1 lens=3+5 d=32 dtype=fp32 layout=padded");
  at::Tensor a = b.right.o.clone(), other = a.clone();
  other[0][4].fill_(NAN);  // padding
  EXPECT_EQ(compare_outputs(b.c, b.inputs, "o", {a, other}).at(0).max_abs, 0);
  other[1][4][0][0] += 2;
  EXPECT_NEAR(compare_outputs(b.c, b.inputs, "o", {a, other}).at(0).max_abs, 2, 1e-6);
}

}  // namespace
}  // namespace attnbench
