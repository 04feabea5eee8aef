// Whether the oracles are right, by properties that their own formulas do not contain.
#include "harness/attention/reference.hpp"

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include "harness/attention/test_reference.hpp"
#include "harness/attention/tokens.hpp"

namespace attnbench {
namespace {

using namespace judge_test;

constexpr OracleKind kOracles[] = {OracleKind::eigen, OracleKind::torch};

double inner_product(const at::Tensor& a, const at::Tensor& b) {
  return (a * b).sum().item<double>();
}

/// The inputs in float64, finite everywhere.
Inputs in_float64(const Case& c) {
  Inputs x = make_inputs_and_mask(c, Conventions::Poison::finite);
  for (at::Tensor* t : {&x.q, &x.k, &x.v, &x.dout}) *t = t->to(at::kDouble).contiguous();
  return x;
}

/// Another direction for each tensor, of the same layout: a case of the same shape with another seed.
Inputs direction_of(Case c) {
  c.seed += 1000;
  return in_float64(c);
}

/// sum(dO o O) along inputs + t * direction.
double loss(OracleKind kind, const Case& c, Inputs x, const Inputs& direction, double t, const Conventions& conventions) {
  x.q = x.q + direction.q * t;
  x.k = x.k + direction.k * t;
  x.v = x.v + direction.v * t;
  const Reference r = Oracle(kind, c, x, inside(), conventions.empty_row).reference();
  return inner_product(r.o.value, tokens_of(x.dout, x.q_rows, c.problem.hq, c.problem.dv));
}

class Oracles : public testing::TestWithParam<std::string> {};

void expect_gradients_to_be_derivatives(const std::string& line) {
  for (const OracleKind kind : kOracles) {
    for (const auto empty_row : {Conventions::EmptyRow::zero, Conventions::EmptyRow::uniform}) {
      const Case c = parse_case(line + " dtype=fp32 seed=3");
      Conventions conventions;
      conventions.empty_row = empty_row;
      const Inputs x = in_float64(c);
      Inputs along = direction_of(c);
      // A uniform row's equal scores are constants, yet eager lets their gradients flow: there only V moves.
      if (empty_row == Conventions::EmptyRow::uniform) along.q = at::zeros_like(along.q), along.k = at::zeros_like(along.k);
      // Padding keys move O of a uniform row too, but have no gradient in the case: hold them still.
      at::Tensor keys = at::zeros_like(along.k), values = at::zeros_like(along.v);
      for (const int64_t row : x.k_rows) {
        keys.view({-1, c.problem.hkv, c.problem.d})[row].copy_(along.k.view({-1, c.problem.hkv, c.problem.d})[row]);
        values.view({-1, c.problem.hkv, c.problem.dv})[row].copy_(along.v.view({-1, c.problem.hkv, c.problem.dv})[row]);
      }
      along.k = keys;
      along.v = values;
      const Reference r = Oracle(kind, c, x, inside(), conventions.empty_row).reference();
      const Problem& p = c.problem;
      const double expected = inner_product(r.dq.value, tokens_of(along.q, x.q_rows, p.hq, p.d)) +
                              inner_product(r.dk.value, tokens_of(along.k, x.k_rows, p.hkv, p.d)) +
                              inner_product(r.dv.value, tokens_of(along.v, x.k_rows, p.hkv, p.dv));
      const double h = 1e-5;
      const double difference = (loss(kind, c, x, along, h, conventions) - loss(kind, c, x, along, -h, conventions)) / (2 * h);
      EXPECT_NEAR(difference, expected, 1e-6 * (1 + std::abs(expected))) << line << " " << name_of(kind);
    }
  }
}

TEST_P(Oracles, GradientsAreTheDerivativesOfO) {
  expect_gradients_to_be_derivatives(GetParam());
}

class ScoreOptions : public testing::TestWithParam<std::string> {};

TEST_P(ScoreOptions, GradientsAreTheDerivativesOfO) {
  expect_gradients_to_be_derivatives(GetParam());
}
INSTANTIATE_TEST_SUITE_P(Shapes, ScoreOptions, testing::ValuesIn(option_shapes()));
INSTANTIATE_TEST_SUITE_P(Dropout, ScoreOptions, testing::ValuesIn(dropout_shapes()));

TEST_P(Oracles, KeyGradientsSumToZeroAsRowsOfDsDo) {
  for (const OracleKind kind : kOracles) {
    const Case c = parse_case(GetParam() + " dtype=fp32");
    const Inputs x = in_float64(c);
    const Reference r = Oracle(kind, c, x, flash(), Conventions::EmptyRow::zero).reference();
    double total = 0, size = 0;
    for (const double y : numbers(r.dk.value)) total += y, size += std::abs(y);
    EXPECT_LE(std::abs(total), 1e-11 * (1 + size)) << GetParam();
  }
}

TEST_P(Oracles, OnesInVGiveOnesInOAndNoGradientOfScores) {
  for (const OracleKind kind : kOracles) {
    const Case c = parse_case(GetParam() + " dtype=bf16");
    Inputs x = in_float64(c);
    x.v = at::full_like(x.v, 1.0);
    const Reference r = Oracle(kind, c, x, flash(), Conventions::EmptyRow::zero).reference();
    const std::vector<double> o = numbers(r.o.value), variance = numbers(r.o.variance);
    for (size_t i = 0; i < o.size(); ++i) {
      const bool reads_nothing = variance[i] == 0;
      ASSERT_NEAR(o[i], reads_nothing ? 0 : 1, 1e-13) << GetParam();
    }
    for (const double y : numbers(r.dq.value)) ASSERT_NEAR(y, 0, 1e-11) << GetParam();
    for (const double y : numbers(r.dk.value)) ASSERT_NEAR(y, 0, 1e-11) << GetParam();
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Oracles, testing::ValuesIn(shapes()));

TEST(OneKey, OIsVAndLseIsItsScore) {
  for (const OracleKind kind : kOracles) {
    const Case c = parse_case("attention hq=2 hkv=2 lq=3 lk=1 d=32 dtype=fp32");
    const Inputs x = in_float64(c);
    const Reference r = Oracle(kind, c, x, flash(), Conventions::EmptyRow::zero).reference();
    const auto q = numbers(x.q), k = numbers(x.k), v = numbers(x.v), o = numbers(r.o.value), lse = numbers(r.lse.value);
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t head = 0; head < 2; ++head) {
        double score = 0;
        for (int64_t d = 0; d < 32; ++d) {
          score += q[(i * 2 + head) * 32 + d] * k[head * 32 + d];
          EXPECT_EQ(o[(i * 2 + head) * 32 + d], v[head * 32 + d]);
        }
        EXPECT_NEAR(lse[i * 2 + head], score * x.scale, 1e-13);
      }
    }
  }
}

TEST(GroupedHeads, GradientsAreSumsOverTheGroup) {
  for (const OracleKind kind : kOracles) {
    const Case grouped = parse_case("attention hq=6 hkv=2 lq=20 lk=30 d=32 dtype=fp32");
    const Inputs x = in_float64(grouped);
    const Reference sum = Oracle(kind, grouped, x, inside(), Conventions::EmptyRow::zero).reference();
    Case apart = grouped;
    apart.problem.hkv = 6;
    Inputs repeated = x;
    repeated.k = x.k.repeat_interleave(3, 1);
    repeated.v = x.v.repeat_interleave(3, 1);
    const Reference parts = Oracle(kind, apart, repeated, inside(), Conventions::EmptyRow::zero).reference();
    const auto group_sum = [](const at::Tensor& dk) { return dk.view({30, 2, 3, 32}).sum(2); };
    EXPECT_LE((sum.dk.value - group_sum(parts.dk.value)).abs().max().item<double>(), 1e-12);
    EXPECT_LE((sum.dv.value - group_sum(parts.dv.value)).abs().max().item<double>(), 1e-12);
  }
}

TEST(Layouts, PaddingChangesNoValue) {
  const std::string problem = "attention hq=2 hkv=1 lens=17+0+40 d=32 mask=causal dtype=bf16 seed=9";
  const Case packed = parse_case(problem);
  const Reference a =
      Oracle(OracleKind::eigen, packed, make_inputs(packed, Conventions::Poison::nan), flash(), Conventions::EmptyRow::zero)
          .reference();
  for (const char* pad : {"right", "left", "holes"}) {
    const Case padded = parse_case(problem + " layout=padded pad=" + pad);
    const Reference b =
        Oracle(OracleKind::eigen, padded, make_inputs(padded, Conventions::Poison::nan), flash(), Conventions::EmptyRow::zero)
            .reference();
    EXPECT_TRUE(a.o.value.equal(b.o.value)) << pad;
    EXPECT_TRUE(a.dk.value.equal(b.dk.value)) << pad;
  }
}

TEST(EmptyRows, UniformOnesAreTheMeanOverStoredKeys) {
  const Case c = parse_case("attention hq=1 lens=4+2 klens=2+3 d=32 mask=causal layout=padded dtype=bf16");
  const Inputs x = make_inputs(c, Conventions::Poison::finite);
  const Conventions conventions = conventions_of(eager());
  const std::vector<int64_t> stored{0, 1, 2};  // the row's pitch is 3, one of them padding
  const auto v = numbers(tokens_of(x.v, stored, 1, 32));
  for (const OracleKind kind : kOracles) {
    const Reference r = Oracle(kind, c, x, eager(), conventions.empty_row).reference();
    const std::vector<double> o = numbers(r.o.value);
    const double third = 0.333984375;  // in bf16
    for (int64_t d = 0; d < 32; ++d) EXPECT_NEAR(o[d], (v[d] + v[32 + d] + v[64 + d]) * third, 1e-14);
  }
}

TEST(GivenOutput, EqualsTheGradientsWhenOIsExactAndFollowsOWhenItIsNot) {
  const Case c = parse_case("attention hq=2 hkv=1 lq=33 lk=40 d=32 dtype=bf16");
  const Inputs x = in_float64(c);
  for (const OracleKind kind : kOracles) {
    const Reference r = Oracle(kind, c, x, flash(), Conventions::EmptyRow::zero).reference();
    const auto exact = Oracle(kind, c, x, flash(), Conventions::EmptyRow::zero).given_output(r, r.o.value);
    EXPECT_LE((exact.dq.value - r.dq.value).abs().max().item<double>(), 1e-13);
    EXPECT_LE((exact.dk.value - r.dk.value).abs().max().item<double>(), 1e-13);
    const auto scaled = Oracle(kind, c, x, flash(), Conventions::EmptyRow::zero).given_output(r, r.o.value * 1.01);
    EXPECT_NE(numbers(scaled.dq.value)[0], numbers(r.dq.value)[0]);
  }
}

/// K of [0, 1) has a mean, through which an error of dS comes to all channels of dq alike; a K without one spreads it.
TEST(GivenOutput, CountsTheChannelsThatAMeanOfKTiesTogetherAsFew) {
  const auto part_left = [](const std::string& fill) {
    const Case c = parse_case("attention hq=2 hkv=1 lq=3 lk=900 d=128 dtype=bf16 fill=" + fill);
    const Inputs x = in_float64(c);
    const Reference r = Oracle(OracleKind::eigen, c, x, flash(), Conventions::EmptyRow::zero).reference();
    const auto given = Oracle(OracleKind::eigen, c, x, flash(), Conventions::EmptyRow::zero).given_output(r, r.o.value);
    EXPECT_LE((given.dq.freedom - r.dq.freedom).max().item<double>(), 0);
    return (given.dq.freedom / r.dq.freedom).mean().item<double>();
  };
  EXPECT_LT(part_left("unit"), 0.4);
  EXPECT_GT(part_left("normal"), 0.9);
}

TEST(GivenOutput, OfNoQueriesOrNoKeysIsEmpty) {
  for (const char* line : {"attention hq=2 hkv=1 lq=0 lk=5 d=32", "attention hq=2 hkv=1 lq=5 lk=0 d=32"}) {
    const Case c = parse_case(line);
    const Inputs x = in_float64(c);
    const Reference r = Oracle(OracleKind::eigen, c, x, flash(), Conventions::EmptyRow::zero).reference();
    const auto given = Oracle(OracleKind::eigen, c, x, flash(), Conventions::EmptyRow::zero).given_output(r, r.o.value);
    EXPECT_EQ(given.dq.freedom.sizes(), r.dq.freedom.sizes()) << line;
    EXPECT_EQ(given.dk.value.abs().sum().item<double>(), 0) << line;
  }
}

/// q = 0: what is left of the scores is the bias and the sink.
TEST(ScoreOptionsByHand, AlibiAndSinkAloneMakeTheSoftmax) {
  const Case c = parse_case("attention hq=2 hkv=1 lq=2 lk=3 d=8 dtype=fp32 alibi=on sink=on");
  Inputs x = in_float64(c);
  x.q = at::zeros_like(x.q);
  const std::vector<double> v = numbers(x.v), sinks = numbers(x.sink.to(at::kDouble));
  for (const OracleKind kind : kOracles) {
    const Reference r = Oracle(kind, c, x, inside(), Conventions::EmptyRow::zero).reference();
    const std::vector<double> o = numbers(r.o.value), lse = numbers(r.lse.value);
    for (int head = 0; head < 2; ++head) {
      const double slope = head == 0 ? 1.0 / 16 : 1.0 / 256;  // 2^-4, 2^-8
      for (int i = 0; i < 2; ++i) {
        double sum = std::exp(sinks[head]), first = 0;
        for (int j = 0; j < 3; ++j) {
          const double p = std::exp(-slope * std::abs(i + 1 - j));  // bottom right: the diagonal starts at key 1
          sum += p;
          first += p * v[j * 8];
        }
        EXPECT_NEAR(o[(i * 2 + head) * 8], first / sum, 1e-13) << name_of(kind);
        EXPECT_NEAR(lse[i * 2 + head], std::log(sum), 1e-13) << name_of(kind);
      }
    }
  }
}

TEST(ScoreOptionsByHand, SoftcapBoundsTheScore) {
  const Case c = parse_case("attention lq=1 lk=1 d=8 dtype=fp32 softcap=3 scale=1");
  Inputs x = in_float64(c);
  const std::vector<double> q = numbers(x.q), k = numbers(x.k);
  double product = 0;
  for (int i = 0; i < 8; ++i) product += q[i] * k[i];
  for (const OracleKind kind : kOracles) {
    const Reference r = Oracle(kind, c, x, inside(), Conventions::EmptyRow::zero).reference();
    EXPECT_NEAR(numbers(r.lse.value)[0], 3 * std::tanh(product / 3), 1e-13) << name_of(kind);
  }
}

/// q = 0: P is 1/3, of which half the keys stay at twice their weight.
TEST(DropoutByHand, KeptKeysAreWeightedAndLseIsThatWithout) {
  const Case c = parse_case("attention hq=2 hkv=1 lq=2 lk=3 d=8 dtype=fp32 dropout=0.5:1");
  Inputs x = in_float64(c);
  x.q = at::zeros_like(x.q);
  const std::vector<double> v = numbers(x.v), kept = numbers(x.kept.to(at::kDouble));
  ASSERT_NE(x.kept.sum().item<int64_t>(), 12);
  for (const OracleKind kind : kOracles) {
    const Reference r = Oracle(kind, c, x, inside(), Conventions::EmptyRow::zero).reference();
    const std::vector<double> o = numbers(r.o.value), lse = numbers(r.lse.value);
    for (int row = 0; row < 4; ++row) {
      double sum = 0;
      for (int j = 0; j < 3; ++j) sum += kept[row * 3 + j] * v[j * 8] * 2 / 3;
      EXPECT_NEAR(o[row * 8], sum, 1e-13) << name_of(kind);
      EXPECT_NEAR(lse[row], std::log(3), 1e-13) << name_of(kind);
    }
  }
}

TEST(KeptOfSequence, HoldsRealKeysInOrderThenPadding) {
  const Case c = parse_case("attention hq=2 hkv=1 lens=3+2 klens=2+4 d=8 layout=padded pad=left dropout=0.5:1");
  Inputs x = make_inputs(c, Conventions::Poison::nan);
  ASSERT_EQ(sizes_of_kept(x), (std::vector<int64_t>{2, 3, 2, 4}));
  x.kept = at::zeros({2, 3, 2, 4}, at::kBool);
  x.kept[0][1][1][2] = true;  // the first real key: padding on the left
  x.kept[0][2][0][0] = true;  // padding
  const at::Tensor kept = kept_of_sequence(x, 0);
  EXPECT_EQ(kept.sizes(), (at::IntArrayRef{2, 3, 4}));
  EXPECT_EQ(kept.sum().item<int64_t>(), 2);
  EXPECT_TRUE(kept[1][1][0].item<bool>());
  EXPECT_TRUE(kept[0][2][2].item<bool>());
}

TEST(UnknownMaths, AreRefusedWithTheCaseLine) {
  const Case c = parse_case("attention hq=1 lq=4 d=32 dropout=0.5:3");
  const Inputs x = make_inputs(c, Conventions::Poison::nan);
  try {
    Oracle(OracleKind::eigen, c, x, flash(), Conventions::EmptyRow::zero).reference();
    FAIL() << "a dropout without a mask was ignored";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("dropout=0.5:3"), std::string::npos) << error.what();
  }
  const Case capped = parse_case("attention hq=1 lq=4 d=32 softcap=20");
  EXPECT_THROW(Oracle(OracleKind::eigen, capped, x, flash(), Conventions::EmptyRow::nan).reference(), std::invalid_argument);
}

}  // namespace
}  // namespace attnbench
