// Right outputs pass, and every gate is seen to fail on a planted defect.
#include "harness/worker/verdict.hpp"

#include <cmath>
#include <functional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_scaled_dot_product_attention_math.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "harness/attention/emulator.hpp"
#include "harness/attention/error_model.hpp"
#include "harness/attention/test_reference.hpp"
#include "harness/worker/field_rules.hpp"
#include "harness/worker/test_judge.hpp"

namespace attnbench {
namespace {

using namespace judge_test;

/// One case under one profile: inputs, the judge, and outputs that are right.
struct Bench {
  explicit Bench(const std::string& line, const Profile& profile = flash(), const Conventions* other = nullptr)
      : c(parse_case(line)),
        profile(profile),
        conventions(other ? *other : conventions_of(profile)),
        inputs(make_inputs_and_mask(c, conventions.poison)),
        judge(make_judge(c, inputs, profile, conventions, OracleKind::eigen)),
        right(emulate(c, inputs, profile, conventions.empty_row)) {}

  Outputs copy() const {
    return {right.o.clone(), right.lse.clone(), right.dq.clone(), right.dk.clone(), right.dv.clone(), right.kept};
  }

  Case c;
  Profile profile;
  Conventions conventions;
  Inputs inputs;
  Judge judge;
  Outputs right;
};

void expect_passes(const Verdict& verdict, const std::string& what) {
  EXPECT_EQ(verdict.status, Status::passed) << what << ": " << verdict.reason;
}

/// The verdict failed, by this gate of this tensor.
void expect_fails(const Verdict& verdict, const std::string& tensor, const std::string& gate) {
  EXPECT_EQ(verdict.status, Status::failed);
  EXPECT_NE(verdict.reason, "");
  ASSERT_EQ(verdict.errors.count(tensor), 1u) << tensor;
  const auto& gates = verdict.errors.at(tensor).gates;
  ASSERT_EQ(gates.count(gate), 1u) << tensor << " " << gate;
  EXPECT_EQ(gates.at(gate).verdict, Gate::Verdict::fail)
      << tensor << " " << gate << ": " << gates.at(gate).value << " of " << gates.at(gate).limit << "; " << verdict.reason;
}

const char* const kCausal = "attention hq=6 hkv=2 lq=129 d=64 dtype=bf16 mask=causal seed=11";

class RightOutputs : public testing::TestWithParam<std::string> {};

TEST_P(RightOutputs, OfEveryProfilePass) {
  for (const Profile& profile : profiles()) {
    for (const char* dtype : {"bf16", "fp16", "fp32"}) {
      const Bench b(GetParam() + " dtype=" + dtype + " seed=21", profile);
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
        const Bench b("attention hq=4 hkv=2 lq=96 d=64 dtype=fp16 mask=causal fill=" + std::string(fill) + " seed=" + seed,
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
        const Bench b(line + " seed=31 dtype=" + dtype, profile);
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

/// The mask that is handed out is the judge's; what was computed follows another one, or other maths.
TEST(Defect, DropoutByAnotherMaskOrWithoutItsFactorFails) {
  for (const Profile& profile : {flash(), eager(), inside()}) {
    const Bench b("attention hq=4 hkv=2 lq=65 lk=97 d=64 dropout=0.2:5", profile);
    const auto computed = [&](double p, const at::Tensor& kept) {
      Case other = b.c;
      other.problem.dropout.p = p;
      Inputs inputs = b.inputs;
      inputs.kept = kept;
      Outputs outputs = emulate(other, inputs, profile, b.conventions.empty_row);
      outputs.kept = b.inputs.kept;
      return outputs;
    };
    at::Tensor one_off = b.inputs.kept.clone();
    one_off[40][3][7] = !one_off[40][3][7].item<bool>();
    const Outputs wrong[] = {computed(0, {}), computed(1e-9, b.inputs.kept), computed(0.21, b.inputs.kept),
                             computed(0.2, draw_kept(b.c.problem, b.inputs, 6)), computed(0.2, one_off)};
    for (const Outputs& outputs : wrong) {
      EXPECT_EQ(b.judge.judge(outputs, Pass::forward).status, Status::failed) << profile.name << " " << (&outputs - wrong);
      Outputs gradients = outputs;
      gradients.o = b.right.o;
      EXPECT_EQ(b.judge.judge(gradients, Pass::backward).status, Status::failed) << profile.name << " " << (&outputs - wrong);
    }
  }
}

/// All that is computed is right by the mask, and the mask is that of no dropout.
TEST(Defect, AMaskThatRepeatsItselfFailsByCopiesAlone) {
  const Case c = parse_case("attention hq=4 hkv=2 lq=65 lk=97 d=64 dropout=0.2:5");
  Inputs inputs = make_inputs_and_mask(c, Conventions::Poison::nan);
  inputs.kept = inputs.kept.narrow(1, 0, 1).expand({65, 4, 97}).contiguous();
  const Judge judge = make_judge(c, inputs, flash(), {}, OracleKind::eigen);
  const Verdict verdict = judge.judge(emulate(c, inputs, flash(), Conventions::EmptyRow::zero), Pass::forward);
  expect_fails(verdict, "kept", "copies");
  EXPECT_EQ(verdict.reason.rfind("kept: heads ", 0), 0u) << verdict.reason;
  for (const auto& [name, gate] : verdict.errors.at("o").gates) EXPECT_NE(gate.verdict, Gate::Verdict::fail) << name;
}

TEST(Defect, AMaskThatIsMissingMisshapedOrUncalledForIsMalformed) {
  const Bench b("attention hq=4 hkv=2 lq=20 d=32 dropout=0.2:5"), plain("attention hq=4 hkv=2 lq=20 d=32");
  Outputs x = b.copy();
  x.kept = at::Tensor();
  EXPECT_TRUE(b.judge.judge(x, Pass::forward).malformed);
  x.kept = b.right.kept.to(at::kFloat);
  EXPECT_TRUE(b.judge.judge(x, Pass::forward).malformed);
  x.kept = b.right.kept.narrow(2, 0, 19);
  EXPECT_TRUE(b.judge.judge(x, Pass::forward).malformed);
  x = plain.copy();
  x.kept = b.right.kept;
  EXPECT_TRUE(plain.judge.judge(x, Pass::forward).malformed);
}

/// As if one option, the first of each line, were another or not there.
TEST(Defect, OptionsOfTheScoresLeftOutOrElseFail) {
  const auto judged = [](const std::string& line, const std::function<void(Problem&)>& change, Pass pass) {
    const Bench b("attention hq=4 hkv=2 lq=65 lk=97 d=64 " + line, inside());
    Case other = b.c;
    change(other.problem);
    return b.judge.judge(emulate(other, b.inputs, b.profile, b.conventions.empty_row), pass);
  };
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    EXPECT_EQ(judged(
                  "softcap=5", [](Problem& p) { p.softcap = 0; }, pass)
                  .status,
              Status::failed);
    EXPECT_EQ(judged(
                  "softcap=5", [](Problem& p) { p.softcap = 5.1; }, pass)
                  .status,
              Status::failed);
    EXPECT_EQ(judged(
                  "alibi=on", [](Problem& p) { p.alibi = false; }, pass)
                  .status,
              Status::failed);
    EXPECT_EQ(judged(
                  "alibi=on", [](Problem& p) { p.align = Align::top_left; }, pass)
                  .status,
              Status::failed);
    EXPECT_EQ(judged(
                  "sink=on", [](Problem& p) { p.sink = false; }, pass)
                  .status,
              Status::failed);
  }
}

TEST(RightOutputs, OfLibTorchsMathPass) {
  for (const char* dtype : {"bf16", "fp16", "fp32"}) {
    Conventions no_lse;
    no_lse.lse_empty = Conventions::LseEmpty::none;
    const Bench b("attention hq=4 hkv=4 lq=100 d=64 mask=causal dtype=" + std::string(dtype), inside(), &no_lse);
    const auto heads_first = [](const at::Tensor& t) { return t.unsqueeze(0).transpose(1, 2); };
    const at::Tensor o = std::get<0>(at::_scaled_dot_product_attention_math(
        heads_first(b.inputs.q), heads_first(b.inputs.k), heads_first(b.inputs.v), {}, 0, true, {}, b.inputs.scale));
    Outputs outputs;
    outputs.o = o.transpose(1, 2).squeeze(0);
    expect_passes(b.judge.judge(outputs, Pass::forward), dtype);
  }
}

TEST(Defect, OneWrongElementFailsTheZGate) {
  const Bench b(kCausal);
  Outputs x = b.copy();
  x.o[40][3][7] += 0.125;
  const Verdict v = b.judge.judge(x, Pass::forward);
  expect_fails(v, "o", "z");
  const Element where{0, 3, 40, 7};
  EXPECT_EQ(v.errors.at("o").worst, where);
  EXPECT_EQ(v.errors.at("o").first_bad, where);
  EXPECT_EQ(v.errors.at("o").bad, 1);
  EXPECT_NE(v.reason.find("token 40"), std::string::npos) << v.reason;
}

TEST(Defect, NanFailsTheNonfiniteGateInEveryTensor) {
  const Bench b(kCausal);
  for (const auto& [name, tensor] : {std::pair{"o", &Outputs::o}, std::pair{"lse", &Outputs::lse}}) {
    Outputs x = b.copy();
    (x.*tensor)[5].fill_(NAN);
    expect_fails(b.judge.judge(x, Pass::forward), name, "nonfinite");
  }
  for (const auto& [name, tensor] :
       {std::pair{"dq", &Outputs::dq}, std::pair{"dk", &Outputs::dk}, std::pair{"dv", &Outputs::dv}}) {
    Outputs x = b.copy();
    (x.*tensor)[5][0][1] = NAN;
    expect_fails(b.judge.judge(x, Pass::backward), name, "nonfinite");
  }
}

TEST(Defect, InfinityWhereTheDtypeHoldsTheValueFails) {
  for (const char* dtype : {"bf16", "fp16", "fp32"}) {
    const Bench b("attention hq=2 lq=40 d=32 dtype=" + std::string(dtype));
    for (const double infinity : {kInfinity, -kInfinity}) {
      Outputs x = b.copy();
      x.o[7][1][3] = infinity;
      expect_fails(b.judge.judge(x, Pass::forward), "o", "nonfinite");
      x = b.copy();
      x.lse[7][1] = infinity;
      expect_fails(b.judge.judge(x, Pass::forward), "lse", "nonfinite");
    }
  }
}

TEST(Defect, NanInTheReferenceIsNoWildcard) {
  Conventions nan_rows;
  nan_rows.empty_row = Conventions::EmptyRow::nan;
  const Bench b("attention hq=1 lq=8 lk=5 d=32 mask=causal", inside(), &nan_rows);
  Outputs x = b.copy();
  expect_passes(b.judge.judge(x, Pass::forward), "NaN where NaN is expected");
  x.o[0].fill_(1.5);
  expect_fails(b.judge.judge(x, Pass::forward), "o", "nonfinite");
}

TEST(Defect, RowsBehindTheLastSequenceThatAreNotZeroFail) {
  const Bench b("attention hq=2 lens=33+20 klens=20+40 d=32 mask=causal tail=9");
  for (const Pass pass : {Pass::forward, Pass::backward}) expect_passes(b.judge.judge(b.right, pass), "zeros");
  for (const auto& [name, tensor, pass] :
       {std::tuple{"o", &Outputs::o, Pass::forward}, std::tuple{"dq", &Outputs::dq, Pass::backward},
        std::tuple{"dk", &Outputs::dk, Pass::backward}, std::tuple{"dv", &Outputs::dv, Pass::backward}}) {
    for (const double left : {double(NAN), 1e-3}) {
      Outputs x = b.copy();
      (x.*tensor)[-5][1][3] = left;
      const Verdict v = b.judge.judge(x, pass);
      expect_fails(v, name, "exact_zero");
      EXPECT_NE(v.reason.find("behind the last sequence, channel 3"), std::string::npos) << v.reason;
    }
  }
  Outputs x = b.copy();
  x.lse[-1] = NAN;
  EXPECT_EQ(b.judge.judge(x, Pass::forward).status, Status::failed);
}

TEST(Defect, MissingLastRowFails) {
  const Bench b(kCausal);
  Outputs x = b.copy();
  x.o[128].zero_();
  expect_fails(b.judge.judge(x, Pass::forward), "o", "z");
  x = b.copy();
  x.dq[128].zero_();
  expect_fails(b.judge.judge(x, Pass::backward), "dq_given_o", "z");
}

TEST(Defect, ShiftedMaskFails) {
  const Bench b("attention hq=2 hkv=1 lq=100 lk=129 d=64 dtype=bf16 mask=causal");
  Case shifted = b.c;
  shifted.problem.mask = Mask::none;
  shifted.problem.window = SlidingWindow{-1, 1};
  const Outputs one_more = emulate(shifted, b.inputs, b.profile, b.conventions.empty_row);
  expect_fails(b.judge.judge(one_more, Pass::forward), "o", "z");
  expect_fails(b.judge.judge(one_more, Pass::backward), "dv", "z");
  shifted = b.c;
  shifted.problem.align = Align::top_left;
  const Outputs other_corner = emulate(shifted, b.inputs, b.profile, b.conventions.empty_row);
  expect_fails(b.judge.judge(other_corner, Pass::forward), "lse", "lse");
}

TEST(Defect, ARoundingThatTheProfileDoesNotNameFailsTheRmsGate) {
  const std::string line = "attention hq=2 lq=256 d=64 dtype=bf16";
  const Bench b(line);
  expect_fails(b.judge.judge(Bench(line, efficient()).right, Pass::backward), "dq_given_o", "rms");
}

TEST(Defect, DqWithoutScaleFails) {
  const Bench b(kCausal);
  Outputs x = b.copy();
  x.dq = x.dq / b.inputs.scale;
  expect_fails(b.judge.judge(x, Pass::backward), "dq_given_o", "z");
}

TEST(Defect, KeyGradientsOfOneHeadOfTheGroupFail) {
  const Bench b(kCausal);
  Inputs last_heads = b.inputs;
  last_heads.dout = b.inputs.dout.clone();
  for (const int64_t head : {0, 1, 3, 4}) last_heads.dout.select(1, head).zero_();
  const Outputs partial = emulate(b.c, last_heads, b.profile, b.conventions.empty_row);
  Outputs x = b.copy();
  x.dk = partial.dk;
  x.dv = partial.dv;
  const Verdict v = b.judge.judge(x, Pass::backward);
  expect_fails(v, "dk_given_o", "rms");
  expect_fails(v, "dv", "rms");
}

TEST(Defect, LseInLog2Fails) {
  const Bench b(kCausal);
  Outputs x = b.copy();
  x.lse = x.lse / std::log(2.0);
  expect_fails(b.judge.judge(x, Pass::forward), "lse", "lse");
}

TEST(Defect, ASmallGainOfOFailsTheBiasGate) {
  const Bench b("attention hq=6 hkv=2 lq=256 d=64 dtype=bf16 mask=causal");
  Outputs x = b.copy();
  x.o = (x.o.to(at::kFloat) * (1 + 0x1p-8)).to(at::kBFloat16);
  expect_fails(b.judge.judge(x, Pass::forward), "o", "bias");
}

/// By the gate that does not take the rounding of the outputs out, whose limit is 0.2 u, this is half of it in fp16 and a
/// fifteenth in bf16.
TEST(Defect, AGainFarBelowTheOutputsRoundingFailsTheBiasGate) {
  for (const char* dtype : {"bf16", "fp16"}) {
    const Bench b("attention hq=6 hkv=2 lq=256 d=64 mask=causal dtype=" + std::string(dtype), inside());
    expect_passes(b.judge.judge(b.right, Pass::backward), dtype);
    const double gain = 5e-5;
    ASSERT_LT(gain, 0.2 * b.judge.yardstick().rounding().u);
    Outputs x = b.copy();
    x.o = (b.judge.yardstick().reference().o.value * (1 + gain)).view(x.o.sizes()).to(at::kFloat).to(x.o.scalar_type());
    expect_fails(b.judge.judge(x, Pass::forward), "o", "bias");
    x = b.copy();
    x.dv = (b.judge.yardstick().reference().dv.value * (1 + gain)).view(x.dv.sizes()).to(at::kFloat).to(x.dv.scalar_type());
    expect_fails(b.judge.judge(x, Pass::backward), "dv", "bias");
  }
}

/// Every element of dV is 1/6: their roundings are one rounding, in each tensor.
TEST(RightOutputs, WhoseElementsAreAllEqualPass) {
  for (const Profile& profile : {flash(), inside_from_output(), inside()})
    for (const char* dtype : {"bf16", "fp16"}) {
      const Bench b("attention b=2 hq=2 d=1 lq=1 lk=6 scale=0 dout=one_hot dtype=" + std::string(dtype), profile);
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
    const Bench b(line, flash());
    expect_passes(b.judge.judge(b.right, Pass::backward), line);
  }
}

/// All P are 1 / lk: however far that is from a number of the dtype, dV may be as far off, and no farther.
TEST(RightOutputs, WhosePAreAllEqualPass) {
  for (const auto& [dtype, bits] : {std::pair{"bf16", 8}, {"fp16", 11}}) {
    int truncated_differ = 0;
    for (int lk = 33; lk < 55; ++lk) {
      const std::string line = fmt::format("attention b=8 hq=4 hkv=4 d=32 lq=8 lk={} dtype={} scale=0", lk, dtype);
      const Bench b(line, flash());
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
  const Bench b(line, flash()), scaled(line, scaled_ds());
  expect_passes(b.judge.judge(b.right, Pass::backward), "dS");
  expect_passes(scaled.judge.judge(scaled.right, Pass::backward), "s dS");
  expect_fails(b.judge.judge(scaled.right, Pass::backward), "dk_given_o", "rms");
}

/// Else its RMS would widen a limit, or narrow it, by a factor that no implementation has.
TEST(OrdinaryErrors, AreThoseOfEachGatedTensor) {
  for (const Profile& profile : {flash(), efficient(), inside(), eager()}) {
    for (const char* line : {"attention hq=2 hkv=2 lq=128 d=64 fill=unit dout=ones", "attention hq=4 hkv=2 lq=200 d=64"}) {
      const Bench b(line, profile);
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

TEST(OrdinaryErrors, OfTiedScoresAreAsManyAsThereAreScores) {
  const Bench b("attention hq=1 lq=256 d=64 fill=sparse_int");
  const Yardstick& y = b.judge.yardstick();
  ASSERT_LT(y.reference().distinct_scores, 200);
  EXPECT_LE(y.scale(kOutput, "o").distinct, y.reference().distinct_scores);
}

/// O of one head whose P, relative to the row's maximum, is truncated to bf16 instead of rounded.
at::Tensor output_of_truncated_p(const Inputs& inputs) {
  const at::Tensor q = inputs.q.select(1, 0).to(at::kDouble), k = inputs.k.select(1, 0).to(at::kDouble),
                   v = inputs.v.select(1, 0).to(at::kDouble);
  const at::Tensor s = q.matmul(k.t()) * inputs.scale;
  const at::Tensor p = (s - s.amax(1, true)).exp();
  at::Tensor truncated = p.to(at::kBFloat16).to(at::kDouble);
  truncated = truncated - (truncated > p).to(at::kDouble) * truncated.log2().floor().exp2() * 0x1p-7;
  return (truncated.matmul(v) / p.sum(1, true)).to(at::kBFloat16).unsqueeze(1);
}

TEST(Defect, TruncatedPFailsTheBiasGate) {
  const Bench b("attention hq=1 lq=256 d=64 dtype=bf16");
  Outputs x = b.copy();
  x.o = output_of_truncated_p(b.inputs);
  expect_fails(b.judge.judge(x, Pass::forward), "o", "bias");
}

TEST(Defect, GarbageInPaddedRowsFails) {
  const Bench b("attention hq=2 hkv=1 lens=17+40 d=64 dtype=bf16 layout=padded pad=left");
  expect_passes(b.judge.judge(b.right, Pass::backward), "zeros in padded rows");
  Outputs x = b.copy();
  x.o[0][3][1][2] = 1e-3;
  Verdict v = b.judge.judge(x, Pass::forward);
  expect_fails(v, "o", "exact_zero");
  EXPECT_NE(v.reason.find("padded position 3"), std::string::npos) << v.reason;
  x = b.copy();
  x.dk[0][0][0][0] = NAN;
  expect_fails(b.judge.judge(x, Pass::backward), "dk", "exact_zero");
}

TEST(Defect, GarbageInGradientsOfPaddingFailsWhateverOHoldsThere) {
  Conventions dense = conventions_of(flash());
  dense.padded_rows_zero = false;
  dense.poison = Conventions::Poison::finite;
  const Bench b("attention hq=2 lens=40+17 d=32 layout=padded", flash(), &dense);
  Outputs o = b.copy(), dq = b.copy(), dk = b.copy();
  o.o[1][30][0][3] = 1.f;
  expect_passes(b.judge.judge(o, Pass::forward), "O of padding is nobody's business here");
  dq.dq[1][30][0][3] = 1.f;
  expect_fails(b.judge.judge(dq, Pass::backward), "dq", "exact_zero");
  dk.dk[1][30][1][3] = 1.f;
  expect_fails(b.judge.judge(dk, Pass::backward), "dk", "exact_zero");
}

TEST(NoPower, AReferenceThatIsNotFiniteJudgesNobody) {
  const Bench b("attention lq=8 d=16 scale=1e308", inside());
  const Verdict v = b.judge.judge(b.right, Pass::forward);
  EXPECT_EQ(v.status, Status::mistrusted);
  EXPECT_NE(v.reason.find("not finite"), std::string::npos) << v.reason;
}

TEST(Defect, GradientAtAnUnseenKeyFails) {
  const Bench b("attention hq=2 hkv=1 lq=20 lk=50 d=64 dtype=bf16 mask=causal align=top_left");
  expect_passes(b.judge.judge(b.right, Pass::backward), "zeros at keys that no query sees");
  for (const auto& [name, tensor] : {std::pair{"dk", &Outputs::dk}, std::pair{"dv", &Outputs::dv}}) {
    Outputs x = b.copy();
    (x.*tensor)[30][0][0] = 1e-30;
    expect_fails(b.judge.judge(x, Pass::backward), name, "exact_zero");
  }
}

TEST(Defect, UniformEmptyRowsWhereZeroIsDeclaredFail) {
  const Bench b("attention hq=2 hkv=1 lq=80 lk=50 d=64 dtype=bf16 mask=causal");
  Conventions uniform = b.conventions;
  uniform.empty_row = Conventions::EmptyRow::uniform;
  const Outputs filled = emulate(b.c, b.inputs, b.profile, uniform.empty_row);
  expect_fails(b.judge.judge(filled, Pass::forward), "o", "exact_zero");
  const Bench declared("attention hq=2 hkv=1 lq=80 lk=50 d=64 dtype=bf16 mask=causal", flash(), &uniform);
  expect_passes(declared.judge.judge(filled, Pass::forward), "uniform where uniform is declared");
  expect_fails(declared.judge.judge(b.right, Pass::forward), "o", "z");
}

TEST(Defect, LseOfAnEmptyRowOfTheOtherSignFails) {
  const Bench b("attention hq=1 lq=80 lk=50 d=64 dtype=bf16 mask=causal");
  Outputs x = b.copy();
  x.lse[0].fill_(INFINITY);
  expect_fails(b.judge.judge(x, Pass::forward), "lse", "nonfinite");
}

TEST(Defect, MissingAndMisshapenOutputsFailWithASentence) {
  const Bench b(kCausal);
  const auto reason = [&](const std::function<void(Outputs&)>& spoil, Pass pass) {
    Outputs x = b.copy();
    spoil(x);
    const Verdict v = b.judge.judge(x, pass);
    EXPECT_EQ(v.status, Status::failed);
    return v.reason;
  };
  EXPECT_EQ(reason([](Outputs& x) { x.o = at::Tensor(); }, Pass::forward), "o is missing from the outputs");
  EXPECT_NE(reason([](Outputs& x) { x.lse = at::Tensor(); }, Pass::forward).find("lse is missing"), std::string::npos);
  EXPECT_NE(reason([](Outputs& x) { x.dk = x.dk.narrow(0, 0, 100); }, Pass::backward).find("[100, 2, 64], expected [129, 2, 64]"),
            std::string::npos);
  EXPECT_NE(reason([](Outputs& x) { x.dv = x.dv.to(at::kFloat); }, Pass::backward).find("dtype Float"), std::string::npos);
  EXPECT_EQ(reason([](Outputs& x) { x.o = x.o.to(at::kMeta); }, Pass::forward), "o is on meta, expected on cpu as the inputs");
}

TEST(GivenOutput, AWrongOFailsTheBackwardToo) {
  const Bench b(kCausal);
  Outputs x = b.copy();
  x.o = at::zeros_like(x.o);
  expect_fails(b.judge.judge(x, Pass::backward), "o", "z");
}

TEST(GivenOutput, GradientsFollowTheKernelsOwnO) {
  // On [0, 1) data all rows of O round alike: gradients with D from the rounded O are right given that O only.
  const Bench b("attention hq=2 hkv=2 lq=128 d=64 dtype=bf16 fill=unit dout=ones");
  expect_passes(b.judge.judge(b.right, Pass::backward), "D from the rounded O");
  Outputs x = b.copy();
  const Outputs exact_d = emulate(b.c, b.inputs, inside(), b.conventions.empty_row);
  x.dk = exact_d.dk;
  expect_fails(b.judge.judge(x, Pass::backward), "dk_given_o", "z");
}

TEST(Eager, IsHeldToWhatItsCoarselyRoundedScoresGive) {
  // Scores near -200 lie a whole unit apart in bf16: next to P without that rounding everything would look wrong.
  const Bench b("attention hq=1 lq=64 d=64 dtype=bf16 fill=shifted_negative", eager());
  for (const Pass pass : {Pass::forward, Pass::backward}) expect_passes(b.judge.judge(b.right, pass), "eager");
  const Bench scores_in_fp32("attention hq=1 lq=64 d=64 dtype=bf16 fill=shifted_negative", inside());
  Outputs x = b.copy();
  x.o = scores_in_fp32.right.o;
  expect_fails(b.judge.judge(x, Pass::forward), "o", "z");
  x = b.copy();
  x.dv[3][0] *= 1 + 0x1p-6;  // two ulp
  expect_fails(b.judge.judge(x, Pass::backward), "dv", "z");
}

TEST(FieldRule, SaysWhatTwiceEagerWouldHaveSaid) {
  const Bench b(kCausal);
  const auto right = b.judge.judge(b.right, Pass::forward).errors.at("o").field_rules.at("2x_eager");
  EXPECT_TRUE(right.passed);
  Outputs x = b.copy();
  x.o[40][3][7] += 1;
  EXPECT_FALSE(b.judge.judge(x, Pass::forward).errors.at("o").field_rules.at("2x_eager").passed);
}

TEST(Failure, IsToldOfTheTensorsThatFailAlone) {
  const Bench b(kCausal);
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
  const Bench b(kCausal);
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
  const Bench b("attention hq=2 hkv=1 lens=3+5 d=32 dtype=fp32 layout=padded");
  at::Tensor a = b.right.o.clone(), other = a.clone();
  other[0][4].fill_(NAN);  // padding
  EXPECT_EQ(compare_outputs(b.c, b.inputs, "o", {a, other}).at(0).max_abs, 0);
  other[1][4][0][0] += 2;
  EXPECT_NEAR(compare_outputs(b.c, b.inputs, "o", {a, other}).at(0).max_abs, 2, 1e-6);
}

}  // namespace
}  // namespace attnbench
