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

#include "harness/attention/reference_test_support.hpp"
#include "harness/attention/tokens.hpp"

namespace attnbench {
namespace {

using namespace judge_test;

constexpr OracleKind kOracles[] = {OracleKind::eigen, OracleKind::torch};

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// The inputs in float64, finite everywhere.
Inputs in_float64(const Case& c) {
  Inputs x = make_inputs(c, Conventions::Poison::finite);
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
  const Reference r = make_reference(kind, c, x, inside(), conventions);
  return dot(r.o.value, tokens_of(x.dout, x.q_rows, c.problem.hq, c.problem.dv));
}

class Oracles : public testing::TestWithParam<std::string> {};

TEST_P(Oracles, GradientsAreTheDerivativesOfO) {
  for (const OracleKind kind : kOracles) {
    for (const auto empty_row : {Conventions::EmptyRow::zero, Conventions::EmptyRow::uniform}) {
      const Case c = parse_case(GetParam() + " dtype=fp32 seed=3");
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
      const Reference r = make_reference(kind, c, x, inside(), conventions);
      const Problem& p = c.problem;
      const double expected = dot(r.dq.value, tokens_of(along.q, x.q_rows, p.hq, p.d)) +
                              dot(r.dk.value, tokens_of(along.k, x.k_rows, p.hkv, p.d)) +
                              dot(r.dv.value, tokens_of(along.v, x.k_rows, p.hkv, p.dv));
      const double h = 1e-5;
      const double difference = (loss(kind, c, x, along, h, conventions) - loss(kind, c, x, along, -h, conventions)) / (2 * h);
      EXPECT_NEAR(difference, expected, 1e-6 * (1 + std::abs(expected))) << GetParam() << " " << r.oracle;
    }
  }
}

TEST_P(Oracles, KeyGradientsSumToZeroAsRowsOfDsDo) {
  for (const OracleKind kind : kOracles) {
    const Case c = parse_case(GetParam() + " dtype=fp32");
    const Inputs x = in_float64(c);
    const Reference r = make_reference(kind, c, x, flash(), {});
    double total = 0, size = 0;
    for (const double y : r.dk.value) total += y, size += std::abs(y);
    EXPECT_LE(std::abs(total), 1e-11 * (1 + size)) << GetParam();
  }
}

TEST_P(Oracles, OnesInVGiveOnesInOAndNoGradientOfScores) {
  for (const OracleKind kind : kOracles) {
    const Case c = parse_case(GetParam() + " dtype=bf16");
    Inputs x = in_float64(c);
    x.v = at::full_like(x.v, 1.0);
    const Reference r = make_reference(kind, c, x, flash(), {});
    for (size_t i = 0; i < r.o.value.size(); ++i) {
      const bool reads_nothing = r.o.variance[i] == 0;
      ASSERT_NEAR(r.o.value[i], reads_nothing ? 0 : 1, 1e-13) << GetParam();
    }
    for (const double y : r.dq.value) ASSERT_NEAR(y, 0, 1e-11) << GetParam();
    for (const double y : r.dk.value) ASSERT_NEAR(y, 0, 1e-11) << GetParam();
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Oracles, testing::ValuesIn(shapes()));

TEST(OneKey, OIsVAndLseIsItsScore) {
  for (const OracleKind kind : kOracles) {
    const Case c = parse_case("attention hq=2 hkv=2 lq=3 lk=1 d=32 dtype=fp32");
    const Inputs x = in_float64(c);
    const Reference r = make_reference(kind, c, x, flash(), {});
    const auto q = tokens_of(x.q, x.q_rows, 2, 32), k = tokens_of(x.k, x.k_rows, 2, 32), v = tokens_of(x.v, x.k_rows, 2, 32);
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t head = 0; head < 2; ++head) {
        double score = 0;
        for (int64_t d = 0; d < 32; ++d) {
          score += q[(i * 2 + head) * 32 + d] * k[head * 32 + d];
          EXPECT_EQ(r.o.value[(i * 2 + head) * 32 + d], v[head * 32 + d]);
        }
        EXPECT_NEAR(r.lse.value[i * 2 + head], score * x.scale, 1e-13);
      }
    }
  }
}

TEST(GroupedHeads, GradientsAreSumsOverTheGroup) {
  for (const OracleKind kind : kOracles) {
    const Case grouped = parse_case("attention hq=6 hkv=2 lq=20 lk=30 d=32 dtype=fp32");
    const Inputs x = in_float64(grouped);
    const Reference sum = make_reference(kind, grouped, x, inside(), {});
    Case apart = grouped;
    apart.problem.hkv = 6;
    Inputs repeated = x;
    repeated.k = x.k.repeat_interleave(3, 1);
    repeated.v = x.v.repeat_interleave(3, 1);
    const Reference parts = make_reference(kind, apart, repeated, inside(), {});
    for (int64_t j = 0; j < 30; ++j)
      for (int64_t head = 0; head < 2; ++head)
        for (int64_t d = 0; d < 32; ++d) {
          double dk = 0, dv = 0;
          for (int64_t g = 0; g < 3; ++g) dk += parts.dk.value[(j * 6 + head * 3 + g) * 32 + d];
          for (int64_t g = 0; g < 3; ++g) dv += parts.dv.value[(j * 6 + head * 3 + g) * 32 + d];
          ASSERT_NEAR(sum.dk.value[(j * 2 + head) * 32 + d], dk, 1e-12);
          ASSERT_NEAR(sum.dv.value[(j * 2 + head) * 32 + d], dv, 1e-12);
        }
  }
}

TEST(Layouts, PaddingChangesNoValue) {
  const std::string problem = "attention hq=2 hkv=1 lens=17+0+40 d=32 mask=causal dtype=bf16 seed=9";
  const Case packed = parse_case(problem);
  const Reference a = make_reference(OracleKind::eigen, packed, make_inputs(packed, Conventions::Poison::nan), flash(), {});
  for (const char* pad : {"right", "left", "holes"}) {
    const Case padded = parse_case(problem + " layout=padded pad=" + pad);
    const Reference b = make_reference(OracleKind::eigen, padded, make_inputs(padded, Conventions::Poison::nan), flash(), {});
    EXPECT_EQ(a.o.value, b.o.value) << pad;
    EXPECT_EQ(a.dk.value, b.dk.value) << pad;
  }
}

TEST(EmptyRows, UniformOnesAreTheMeanOverStoredKeys) {
  const Case c = parse_case("attention hq=1 lens=4+2 klens=2+3 d=32 mask=causal layout=padded dtype=bf16");
  const Inputs x = make_inputs(c, Conventions::Poison::finite);
  const Conventions conventions = conventions_of(eager());
  const std::vector<int64_t> stored{0, 1, 2};  // the row's pitch is 3, one of them padding
  const auto v = tokens_of(x.v, stored, 1, 32);
  for (const OracleKind kind : kOracles) {
    const Reference r = make_reference(kind, c, x, eager(), conventions);
    for (int64_t d = 0; d < 32; ++d) EXPECT_NEAR(r.o.value[d], (v[d] + v[32 + d] + v[64 + d]) / 3, 1e-14);
    EXPECT_EQ(r.o.freedom[0], 0);
  }
}

TEST(GivenOutput, EqualsTheGradientsWhenOIsExactAndFollowsOWhenItIsNot) {
  const Case c = parse_case("attention hq=2 hkv=1 lq=33 lk=40 d=32 dtype=bf16");
  const Inputs x = in_float64(c);
  for (const OracleKind kind : kOracles) {
    const Reference r = make_reference(kind, c, x, flash(), {});
    at::Tensor o = at::zeros_like(x.q);
    std::copy(r.o.value.begin(), r.o.value.end(), o.data_ptr<double>());
    const auto exact = given_output(kind, c, x, flash(), {}, r, o);
    for (size_t i = 0; i < r.dq.value.size(); ++i) ASSERT_NEAR(exact.dq.value[i], r.dq.value[i], 1e-13);
    for (size_t i = 0; i < r.dk.value.size(); ++i) ASSERT_NEAR(exact.dk.value[i], r.dk.value[i], 1e-13);
    const auto scaled = given_output(kind, c, x, flash(), {}, r, o * 1.01);
    EXPECT_NE(scaled.dq.value[0], r.dq.value[0]);
  }
}

TEST(UnknownMaths, AreRefusedWithTheCaseLine) {
  const Case c = parse_case("attention hq=1 lq=4 d=32 softcap=20");
  Case plain = c;
  plain.problem.softcap = 0;
  const Inputs x = make_inputs(plain, Conventions::Poison::nan);
  try {
    make_reference(OracleKind::eigen, c, x, flash(), {});
    FAIL() << "softcap was ignored";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("softcap=20"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace attnbench
