// The two float64 oracles, written apart, hold each other: values and error model.
#include <algorithm>
#include <cmath>
#include <string>

#include <ATen/ops/tensor.h>
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
      const Inputs inputs = make_inputs_and_mask(c, conventions.poison);
      const Reference a = Oracle(OracleKind::eigen, c, inputs, profile, conventions.empty_row).reference();
      const Reference b = Oracle(OracleKind::torch, c, inputs, profile, conventions.empty_row).reference();
      const std::string what = line + " " + profile.name + " ";
      expect_same(a, b, what);
      if (!rounding_of(profile, c.problem).conditional()) continue;
      const Outputs emulated = emulate(c, inputs, profile, conventions.empty_row);
      const auto x = Oracle(OracleKind::eigen, c, inputs, profile, conventions.empty_row).given_output(a, emulated.o);
      const auto y = Oracle(OracleKind::torch, c, inputs, profile, conventions.empty_row).given_output(b, emulated.o);
      expect_same(x.dq, y.dq, what + "dq given o");
      expect_same(x.dk, y.dk, what + "dk given o");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, TwoOracles, testing::ValuesIn(shapes()));
INSTANTIATE_TEST_SUITE_P(Options, TwoOracles, testing::ValuesIn(option_shapes()));
INSTANTIATE_TEST_SUITE_P(Dropout, TwoOracles, testing::ValuesIn(dropout_shapes()));

TEST(TwoOraclesOnTies, CountTheSameDistinctScores) {
  const Case c = parse_case("attention hq=1 lq=256 d=64 fill=sparse_int");
  const Inputs inputs = make_inputs(c, Conventions::Poison::nan);
  const auto distinct = [&](OracleKind kind) {
    return distinct_scores(Oracle(kind, c, inputs, flash(), Conventions::EmptyRow::zero).reference());
  };
  const double eigen = distinct(OracleKind::eigen);
  EXPECT_EQ(eigen, distinct(OracleKind::torch));
  EXPECT_LT(eigen, 200);
}

/// One unit of a small s dS is 14 of a dS in fp16: if that may be its neighbour, so may s dS, though it lies far from a tie.
TEST(TwoOraclesOfEager, KnowThatSDsIsAsUncertainAsDs) {
  const Case c = parse_case("attention b=6 hq=2 d=192 lq=1 lk=511 dtype=fp16 layout=padded fill=ramp dout=ones seed=3703");
  const Inputs inputs = make_inputs(c, Conventions::Poison::finite);
  const int64_t token = 3 * 511 + 230, head = 1, channel = 0;
  const double libtorch_has = 4.05907631e-05;  // 2.11, on a CPU and on an H200
  for (OracleKind kind : {OracleKind::eigen, OracleKind::torch}) {
    const Expected dk = Oracle(kind, c, inputs, eager(), Conventions::EmptyRow::uniform).reference().dk;
    const auto at = [&](const at::Tensor& x) { return x[token][head][channel].item<double>(); };
    EXPECT_LT(std::abs(libtorch_has - at(dk.value)) / std::sqrt(at(dk.variance)), 2) << name_of(kind);
  }
}

/// Where all P are equal so are the dS of the keys that a row does not keep, and one that lies at a tie moves all of them.
TEST(TwoOraclesOfEager, KnowThatEqualGradientsRoundTogether) {
  const Case c = parse_case("attention hq=16 lq=64 lk=512 d=32 dtype=bf16 fill=deep_negative dropout=0.9:1");
  const Inputs inputs = make_inputs_and_mask(c, Conventions::Poison::finite);
  const Expected a = Oracle(OracleKind::eigen, c, inputs, eager(), Conventions::EmptyRow::uniform).reference().dq;
  const Expected b = Oracle(OracleKind::torch, c, inputs, eager(), Conventions::EmptyRow::uniform).reference().dq;
  expect_same(a, b, "dq");
  EXPECT_GT(a.variance.select(2, 0).max().item<double>(), 0.1) << "0.03 where they were independent";
}

/// What fp32 takes for 0 of P, and 1 / (1 - p) of it, is an error of O.
TEST(TwoOraclesOfDropout, KnowThatFp32FlushesP) {
  const Case c = parse_case("attention hq=4 d=240 lq=5 lk=16 scale=2 dropout=0.9:1421103 seed=5778038492828048029");
  const Inputs inputs = make_inputs_and_mask(c, Conventions::Poison::finite);
  for (OracleKind kind : {OracleKind::eigen, OracleKind::torch}) {
    const Expected o = Oracle(kind, c, inputs, inside(), Conventions::EmptyRow::zero).reference().o;
    const at::Tensor tiny = (o.value.abs() < 0x1p-120).logical_and(o.value != 0);
    ASSERT_GT(tiny.sum().item<int64_t>(), 0);
    EXPECT_LT((o.value.abs() / o.variance.sqrt()).masked_select(tiny).max().item<double>(), 6.5) << name_of(kind);
  }
}

/// V of the first key is 0, so that its dP has no error; D has that of the other key's, and dS of both comes from D.
TEST(TwoOraclesOfFp32, KnowThatDHasTheErrorsOfAllKeys) {
  const Case c = parse_case("attention hq=1 d=2 lq=1 lk=2 dtype=fp32 scale=0");
  Inputs inputs = make_inputs(c, Conventions::Poison::finite);
  inputs.scale = 1;
  inputs.q.zero_();  // P = 1/2
  inputs.k.copy_(at::tensor({1.0f, 0.0f, 0.0f, 1.0f}).view({2, 1, 2}));
  inputs.v.copy_(at::tensor({0.0f, 0.0f, 1.0f, -1.0f}).view({2, 1, 2}));
  inputs.dout.copy_(at::tensor({1.0f, 1.0f - 0x1p-20f}).view({1, 1, 2}));  // dP of the second key: 2^-20 of two terms of 1
  for (OracleKind kind : {OracleKind::eigen, OracleKind::torch}) {
    const Expected dq = Oracle(kind, c, inputs, inside(), Conventions::EmptyRow::zero).reference().dq;
    const auto sigma = [&](int64_t channel) { return std::sqrt(dq.variance.flatten()[channel].item<double>()); };
    EXPECT_GT(sigma(0), 0.3 * 0x1p-24) << "through the key without an error of its own, " << name_of(kind);
    EXPECT_LT(sigma(1) / sigma(0), 3) << name_of(kind);
  }
}

TEST(TwoOraclesRefuse, WhatTheyHaveNoFormulasFor) {
  const Case c = parse_case("attention hq=1 lq=9 lk=6 d=32");
  const Inputs inputs = make_inputs(c, Conventions::Poison::finite);
  Profile profile = eager();
  profile.d = Profile::RowSum::from_output;
  for (const OracleKind kind : {OracleKind::eigen, OracleKind::torch}) {
    EXPECT_THROW(Oracle(kind, c, inputs, profile, Conventions::EmptyRow::zero), std::invalid_argument) << name_of(kind);
    const Oracle of_eager(kind, c, inputs, eager(), Conventions::EmptyRow::zero);
    const Reference reference = of_eager.reference();
    EXPECT_THROW(of_eager.given_output(reference, inputs.dout), std::invalid_argument) << name_of(kind);
  }
}

TEST(LibTorchOracle, AnswersAboutHeadsTogetherAsOneByOne) {
  const Case c = parse_case("attention hq=3 hkv=3 lq=70 lk=50 d=32 mask=causal dtype=fp16");
  const Inputs inputs = make_inputs(c, Conventions::Poison::finite);
  const auto heads_of = [](const at::Tensor& t) { return t.to(at::kDouble).transpose(0, 1).contiguous(); };
  for (const Profile& profile : profiles()) {
    HeadProblem together;
    together.q = heads_of(inputs.q), together.k = heads_of(inputs.k);
    together.v = heads_of(inputs.v), together.dout = heads_of(inputs.dout);
    together.sequences = {{70, 50, 50}};
    together.heads = 3;
    together.queries = 70;
    together.keys = together.stored_keys = 50;
    together.d = together.dv = 32;
    together.problem = &c.problem;
    together.scale = inputs.scale;
    together.empty_row = Conventions::EmptyRow::uniform;
    together.rounding = rounding_of(profile, c.problem);
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
            &HeadAnswer::p4, &HeadAnswer::ds2, &HeadAnswer::ds4})
        EXPECT_LE(largest_relative_difference((all.*t).narrow(0, head, 1), one.*t), 1e-9) << profile.name << " head " << head;
    }
  }
}

/// Heads of sequences of other lengths, with NaN in keys that no query sees, rows up to the longest being 0.
HeadProblem several_sequences(const Case& c, const Profile& profile, Conventions::EmptyRow empty_row) {
  HeadProblem h;
  h.sequences = {{33, 50, 50}, {70, 20, 20}, {0, 9, 9}, {5, 0, 0}, {1, 64, 64}};
  if (empty_row == Conventions::EmptyRow::uniform)
    for (SequenceOfHeads& s : h.sequences) s.stored_keys = 64;
  h.heads = 10;
  h.queries = 70;
  h.keys = h.stored_keys = 64;
  h.d = h.dv = 32;
  h.problem = &c.problem;
  h.scale = 0.18;
  h.empty_row = empty_row;
  h.rounding = rounding_of(profile, c.problem);
  const Inputs drawn = make_inputs(parse_case("attention hq=10 lq=70 lk=64 d=32 dtype=fp16"), Conventions::Poison::finite);
  const auto rows = [](const at::Tensor& t) { return t.to(at::kDouble).transpose(0, 1).contiguous(); };
  h.q = rows(drawn.q), h.k = rows(drawn.k), h.v = rows(drawn.v), h.dout = rows(drawn.dout);
  for (int64_t head = 0; head < h.heads; ++head) {
    const SequenceOfHeads& s = h.sequences[head / 2];
    for (at::Tensor* t : {&h.q, &h.dout}) t->select(0, head).narrow(0, s.queries, 70 - s.queries).zero_();
    for (at::Tensor* t : {&h.k, &h.v}) t->select(0, head).narrow(0, s.stored_keys, 64 - s.stored_keys).zero_();
  }
  return h;
}

HeadProblem sequence_alone(const HeadProblem& all, int64_t n) {
  HeadProblem one = all;
  const SequenceOfHeads& s = all.sequences[n];
  one.sequences = {s};
  one.heads = 2;
  one.queries = s.queries, one.keys = s.keys, one.stored_keys = s.stored_keys;
  for (at::Tensor* t : {&one.q, &one.dout}) *t = t->narrow(0, 2 * n, 2).narrow(1, 0, s.queries).contiguous();
  for (at::Tensor* t : {&one.k, &one.v}) *t = t->narrow(0, 2 * n, 2).narrow(1, 0, s.stored_keys).contiguous();
  return one;
}

class SequencesTogether : public testing::TestWithParam<std::string> {};

TEST_P(SequencesTogether, AreAnsweredAsOneByOne) {
  const Case c = parse_case("attention hq=2 lq=70 lk=64 d=32 dtype=fp16 " + GetParam());
  for (const Profile& profile : profiles()) {
    const HeadProblem all = several_sequences(c, profile, conventions_of(profile).empty_row);
    const HeadAnswer together = torch_heads(all);
    for (int64_t n = 0; n < static_cast<int64_t>(all.sequences.size()); ++n) {
      const HeadProblem alone = sequence_alone(all, n);
      const HeadAnswer one = torch_heads(alone);
      const std::string what = GetParam() + " " + profile.name + " sequence " + std::to_string(n);
      const auto same = [&](at::Tensor HeadAnswer::*t, int64_t length) {
        EXPECT_LE(largest_relative_difference((together.*t).narrow(0, 2 * n, 2).narrow(1, 0, length), one.*t), 1e-9) << what;
      };
      for (const auto t : {&HeadAnswer::o, &HeadAnswer::o_variance, &HeadAnswer::lse, &HeadAnswer::lse_sigma, &HeadAnswer::dq,
                           &HeadAnswer::dq_variance, &HeadAnswer::dq_allowance, &HeadAnswer::o_freedom, &HeadAnswer::dq_freedom})
        same(t, alone.queries);
      for (const auto t : {&HeadAnswer::dk, &HeadAnswer::dk_variance, &HeadAnswer::dk_allowance, &HeadAnswer::dv,
                           &HeadAnswer::dv_variance, &HeadAnswer::p2, &HeadAnswer::p4, &HeadAnswer::ds2, &HeadAnswer::ds4})
        same(t, alone.stored_keys);
      EXPECT_TRUE(together.key_seen[n].narrow(0, 0, alone.stored_keys).equal(one.key_seen[0])) << what;
      EXPECT_EQ(
          std::count_if(together.sampled_heads.begin(), together.sampled_heads.end(), [&](int64_t h) { return h / 2 == n; }),
          one.score_samples.numel())
          << what;
      if (!all.rounding.conditional()) continue;
      const at::Tensor o = one.o * 1.01;
      at::Tensor all_o = together.o.clone();
      all_o.narrow(0, 2 * n, 2).narrow(1, 0, alone.queries).copy_(o);
      EXPECT_LE(
          largest_relative_difference(torch_heads_given_output(all, all_o).dk.narrow(0, 2 * n, 2).narrow(1, 0, alone.stored_keys),
                                      torch_heads_given_output(alone, o).dk),
          1e-9)
          << what;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Masks, SequencesTogether,
                         testing::Values("mask=none", "mask=causal", "mask=causal align=top_left", "window=3:2"));

TEST(SequencesTogetherOnTheSameRows, NeverReadWhatNoQueryOfTheirsSees) {
  const Case c = parse_case("attention hq=2 lq=70 lk=64 d=32 dtype=fp16 window=2:0 align=top_left");
  HeadProblem all = several_sequences(c, flash(), Conventions::EmptyRow::zero);
  all.sequences = {{1, 64, 64}, {70, 64, 64}, {70, 64, 64}, {70, 64, 64}, {70, 64, 64}};
  for (at::Tensor* t : {&all.k, &all.v}) t->narrow(0, 0, 2).narrow(1, 1, 63).fill_(NAN);  // beyond the first sequence's window
  const HeadAnswer answer = torch_heads(all);
  for (const at::Tensor& t : {answer.o, answer.dq, answer.dk, answer.dv, answer.dk_variance})
    EXPECT_FALSE(t.isnan().any().item<bool>());
}

TEST(TwoOraclesOnNanRows, PropagateNanAlike) {
  const Case c = parse_case("attention hq=1 lq=9 lk=6 d=32 mask=causal");
  const Inputs inputs = make_inputs(c, Conventions::Poison::nan);
  Conventions conventions;
  conventions.empty_row = Conventions::EmptyRow::nan;
  for (const OracleKind kind : {OracleKind::eigen, OracleKind::torch}) {
    const Reference r = Oracle(kind, c, inputs, inside(), conventions.empty_row).reference();
    EXPECT_TRUE(std::isnan(numbers(r.o.value)[0])) << name_of(kind);
    EXPECT_TRUE(std::isfinite(numbers(r.o.value)[3 * 32])) << name_of(kind);
    EXPECT_TRUE(std::isnan(numbers(r.dq.value)[0])) << name_of(kind);
    EXPECT_TRUE(std::isnan(numbers(r.dv.value)[0])) << name_of(kind);
  }
}

}  // namespace
}  // namespace attnbench
