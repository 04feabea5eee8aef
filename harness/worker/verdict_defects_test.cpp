// Every gate of the judge is seen to fail on a planted defect.
#include <functional>
#include <string>
#include <tuple>
#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include "harness/attention/emulator.hpp"
#include "harness/attention/test_reference.hpp"
#include "harness/worker/test_judge.hpp"

namespace attnbench {
namespace {

using namespace judge_test;

/// The mask that is handed out is the judge's; what was computed follows another one, or other maths.
TEST(Defect, DropoutByAnotherMaskOrWithoutItsFactorFails) {
  for (const Profile& profile : {flash(), eager(), inside()}) {
    const JudgedCase b("attention hq=4 hkv=2 lq=65 lk=97 d=64 dropout=0.2:5", profile);
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
  const JudgedCase b("attention hq=4 hkv=2 lq=20 d=32 dropout=0.2:5"), plain("attention hq=4 hkv=2 lq=20 d=32");
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
    const JudgedCase b("attention hq=4 hkv=2 lq=65 lk=97 d=64 " + line, inside());
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

TEST(Defect, OneWrongElementFailsTheZGate) {
  const JudgedCase b(kCausal);
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
  const JudgedCase b(kCausal);
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
    const JudgedCase b("attention hq=2 lq=40 d=32 dtype=" + std::string(dtype));
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
  const JudgedCase b("attention hq=1 lq=8 lk=5 d=32 mask=causal", inside(), &nan_rows);
  Outputs x = b.copy();
  expect_passes(b.judge.judge(x, Pass::forward), "NaN where NaN is expected");
  x.o[0].fill_(1.5);
  expect_fails(b.judge.judge(x, Pass::forward), "o", "nonfinite");
}

TEST(Defect, RowsBehindTheLastSequenceThatAreNotZeroFail) {
  const JudgedCase b("attention hq=2 lens=33+20 klens=20+40 d=32 mask=causal tail=9");
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
  const JudgedCase b(kCausal);
  Outputs x = b.copy();
  x.o[128].zero_();
  expect_fails(b.judge.judge(x, Pass::forward), "o", "z");
  x = b.copy();
  x.dq[128].zero_();
  expect_fails(b.judge.judge(x, Pass::backward), "dq_given_o", "z");
}

TEST(Defect, ShiftedMaskFails) {
  const JudgedCase b("attention hq=2 hkv=1 lq=100 lk=129 d=64 dtype=bf16 mask=causal");
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
  const JudgedCase b(line);
  expect_fails(b.judge.judge(JudgedCase(line, efficient()).right, Pass::backward), "dq_given_o", "rms");
}

TEST(Defect, DqWithoutScaleFails) {
  const JudgedCase b(kCausal);
  Outputs x = b.copy();
  x.dq = x.dq / b.inputs.scale;
  expect_fails(b.judge.judge(x, Pass::backward), "dq_given_o", "z");
}

TEST(Defect, KeyGradientsOfOneHeadOfTheGroupFail) {
  const JudgedCase b(kCausal);
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
  const JudgedCase b(kCausal);
  Outputs x = b.copy();
  x.lse = x.lse / std::log(2.0);
  expect_fails(b.judge.judge(x, Pass::forward), "lse", "lse");
}

TEST(Defect, ASmallGainOfOFailsTheBiasGate) {
  const JudgedCase b("attention hq=6 hkv=2 lq=256 d=64 dtype=bf16 mask=causal");
  Outputs x = b.copy();
  x.o = (x.o.to(at::kFloat) * (1 + 0x1p-8)).to(at::kBFloat16);
  expect_fails(b.judge.judge(x, Pass::forward), "o", "bias");
}

/// By the gate that does not take the rounding of the outputs out, whose limit is 0.2 u, this is half of it in fp16 and a
/// fifteenth in bf16.
TEST(Defect, AGainFarBelowTheOutputsRoundingFailsTheBiasGate) {
  for (const char* dtype : {"bf16", "fp16"}) {
    const JudgedCase b("attention hq=6 hkv=2 lq=256 d=64 mask=causal dtype=" + std::string(dtype), inside());
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
  const JudgedCase b("attention hq=1 lq=256 d=64 dtype=bf16");
  Outputs x = b.copy();
  x.o = output_of_truncated_p(b.inputs);
  expect_fails(b.judge.judge(x, Pass::forward), "o", "bias");
}

TEST(Defect, GarbageInPaddedRowsFails) {
  const JudgedCase b("attention hq=2 hkv=1 lens=17+40 d=64 dtype=bf16 layout=padded pad=left");
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
  const JudgedCase b("attention hq=2 lens=40+17 d=32 layout=padded", flash(), &dense);
  Outputs o = b.copy(), dq = b.copy(), dk = b.copy();
  o.o[1][30][0][3] = 1.f;
  expect_passes(b.judge.judge(o, Pass::forward), "O of padding is nobody's business here");
  dq.dq[1][30][0][3] = 1.f;
  expect_fails(b.judge.judge(dq, Pass::backward), "dq", "exact_zero");
  dk.dk[1][30][1][3] = 1.f;
  expect_fails(b.judge.judge(dk, Pass::backward), "dk", "exact_zero");
}

TEST(Defect, GradientAtAnUnseenKeyFails) {
  const JudgedCase b("attention hq=2 hkv=1 lq=20 lk=50 d=64 dtype=bf16 mask=causal align=top_left");
  expect_passes(b.judge.judge(b.right, Pass::backward), "zeros at keys that no query sees");
  for (const auto& [name, tensor] : {std::pair{"dk", &Outputs::dk}, std::pair{"dv", &Outputs::dv}}) {
    Outputs x = b.copy();
    (x.*tensor)[30][0][0] = 1e-30;
    expect_fails(b.judge.judge(x, Pass::backward), name, "exact_zero");
  }
}

TEST(Defect, UniformEmptyRowsWhereZeroIsDeclaredFail) {
  const JudgedCase b("attention hq=2 hkv=1 lq=80 lk=50 d=64 dtype=bf16 mask=causal");
  Conventions uniform = b.conventions;
  uniform.empty_row = Conventions::EmptyRow::uniform;
  const Outputs filled = emulate(b.c, b.inputs, b.profile, uniform.empty_row);
  expect_fails(b.judge.judge(filled, Pass::forward), "o", "exact_zero");
  const JudgedCase declared("attention hq=2 hkv=1 lq=80 lk=50 d=64 dtype=bf16 mask=causal", flash(), &uniform);
  expect_passes(declared.judge.judge(filled, Pass::forward), "uniform where uniform is declared");
  expect_fails(declared.judge.judge(b.right, Pass::forward), "o", "z");
}

TEST(Defect, LseOfAnEmptyRowOfTheOtherSignFails) {
  const JudgedCase b("attention hq=1 lq=80 lk=50 d=64 dtype=bf16 mask=causal");
  Outputs x = b.copy();
  x.lse[0].fill_(INFINITY);
  expect_fails(b.judge.judge(x, Pass::forward), "lse", "nonfinite");
}

TEST(Defect, MissingAndMisshapenOutputsFailWithASentence) {
  const JudgedCase b(kCausal);
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
  const auto wrong_and_missing = [](Outputs& x) {
    x.o = x.o * 2;
    x.dq = at::Tensor();
  };
  EXPECT_EQ(reason(wrong_and_missing, Pass::backward), "dq is missing from the outputs") << "the plainest fault";
  EXPECT_EQ(reason([](Outputs& x) { x.o = x.o.to(at::kMeta); }, Pass::forward), "o is on meta, expected on cpu as the inputs");
}

}  // namespace
}  // namespace attnbench
