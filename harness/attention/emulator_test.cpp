// The emulator is what a correct kernel with a profile's roundings computes: against a plain loop over tiles, and the oracle.
#include "harness/attention/emulator.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "harness/attention/element.hpp"
#include "harness/attention/error_model.hpp"
#include "harness/attention/test_reference.hpp"
#include "harness/attention/tile_team.hpp"
#include "harness/attention/tokens.hpp"

namespace attnbench {
namespace {

using namespace judge_test;
using at::Tensor;

/// O of one head, bf16, without a mask: P of a tile is rounded relative to the maximum up to it (by_tiles), or to that of all.
Tensor tiled_output(const Inputs& inputs, bool by_tiles) {
  const auto head = [](const Tensor& t) { return t.to(at::kFloat).squeeze(1); };
  const Tensor q = head(inputs.q), k = head(inputs.k), v = head(inputs.v);
  const Tensor scores = q.matmul(k.t()).mul_(inputs.scale);
  Tensor m = by_tiles ? at::full({q.size(0), 1}, -kInfinity, at::kFloat) : scores.amax(1, true), l = at::zeros({q.size(0), 1});
  Tensor o = at::zeros({q.size(0), v.size(1)});
  for (int64_t first = 0; first < k.size(0); first += kTile) {
    const int64_t keys = std::min(kTile, k.size(0) - first);
    const Tensor s = scores.narrow(1, first, keys), largest = at::maximum(m, s.amax(1, true));
    const Tensor shrink = (m - largest).exp(), p = (s - largest).exp();
    l = l * shrink + p.sum(1, true);
    o = o * shrink + p.to(at::kBFloat16).to(at::kFloat).matmul(v.narrow(0, first, keys));
    m = largest;
  }
  return (o / l).to(at::kBFloat16);
}

double share_of_equal(const Tensor& a, const Tensor& b) {
  return (a == b).to(at::kDouble).mean().item<double>();
}

TEST(Emulator, RoundsPRelativeToTheMaximumSoFar) {
  const Case c = parse_case("attention hq=1 hkv=1 lq=96 lk=200 d=64 scale=0.5 seed=3");
  const Inputs inputs = make_inputs(c, Conventions::Poison::nan);
  const Tensor o = emulate(c, inputs, flash(), Conventions::EmptyRow::zero).o.squeeze(1);
  EXPECT_GT(share_of_equal(o, tiled_output(inputs, true)), 0.995);  // float32 sums have another order
  EXPECT_LT(share_of_equal(o, tiled_output(inputs, false)), 0.95);
}

/// The largest |z| of tokens, and how many values that must be 0 are not.
void expect_right(const Tensor& tokens, const Expected& x, const std::string& what) {
  const Tensor exact = x.variance == 0;
  EXPECT_FALSE(((tokens != x.value) & exact).any().item<bool>()) << what;
  const Tensor z = at::where(exact, 0.0, (tokens - x.value) / x.variance.sqrt());
  EXPECT_LT(z.abs().amax().item<double>(), 7) << what;
}

/// With blocks of query rows behind the first, and keys before the first that a block reads.
class SeveralBlocks : public testing::TestWithParam<std::string> {
 protected:
  static void expect_ordinary(const std::string& line, const Profile& profile, Conventions conventions) {
    const Case c = parse_case(line);
    const Problem& p = c.problem;
    const Inputs inputs = make_inputs_and_mask(c, conventions.poison);
    const Oracle oracle(OracleKind::eigen, c, inputs, profile, conventions.empty_row);
    const Reference r = oracle.reference();
    const Outputs x = emulate(c, inputs, profile, conventions.empty_row);
    const std::string what = line + " " + profile.name + " ";
    expect_right(tokens_of(x.o, inputs.q_rows, p.hq, p.dv), r.o, what + "o");
    expect_right(tokens_of(x.dv, inputs.k_rows, p.hkv, p.dv), r.dv, what + "dv");
    const bool conditional = rounding_of(profile, p).conditional();
    const ConditionalGradients given = conditional ? oracle.given_output(r, x.o) : ConditionalGradients{r.dq, r.dk};
    expect_right(tokens_of(x.dq, inputs.q_rows, p.hq, p.d), given.dq, what + "dq");
    expect_right(tokens_of(x.dk, inputs.k_rows, p.hkv, p.d), given.dk, what + "dk");
  }
};

TEST_P(SeveralBlocks, ErrAsTheirProfileDeclares) {
  for (const Profile& profile : profiles()) expect_ordinary(GetParam(), profile, conventions_of(profile));
}

INSTANTIATE_TEST_SUITE_P(
    Lines, SeveralBlocks,
    testing::Values("attention hq=4 hkv=1 lq=200 lk=300 d=32 mask=causal",
                    "attention hq=6 hkv=1 lens=300+40 klens=190+250 d=32 window=70:9 dtype=fp16",
                    "attention hq=2 hkv=1 lq=700 d=32 window=40:9", "attention hq=2 hkv=1 lq=700 lk=300 d=32 mask=causal",
                    "attention hq=4 hkv=2 lq=300 lk=500 d=32 alibi=on mask=causal",
                    "attention hq=4 hkv=1 lq=300 lk=500 d=32 softcap=3 alibi=on sink=on window=100:20 align=top_left",
                    "attention hq=2 hkv=1 lq=420 lk=400 d=32 dropout=0.3:4 mask=causal",
                    "attention hq=2 hkv=1 lens=400+410+390+3+9 klens=220+390+140+0+1 d=32 window=9:4 layout=padded pad=holes "
                    "dropout=0.3:4",
                    "attention hq=4 hkv=1 lq=180 lk=200 d=32 mask=causal dtype=fp32"));

/// Rows that see no key and have a sink, as an implementation with uniform empty rows has them.
TEST_F(SeveralBlocks, HaveEmptyRowsOfTheirOwn) {
  Conventions conventions = conventions_of(flash());
  conventions.empty_row = Conventions::EmptyRow::uniform;
  conventions.poison = Conventions::Poison::finite;
  expect_ordinary("attention hq=2 hkv=1 lens=400+410+390 klens=220+390+140 d=32 mask=causal sink=on layout=padded pad=left",
                  flash(), conventions);
}

TEST(Emulator, HasExponentialsToAnUlp) {
  for (double x = -110; x < 89.5; x += 0x1p-10) {
    const double exact = std::exp(x), got = exponential(static_cast<float>(x)), largest = std::numeric_limits<float>::max();
    if (exact > largest) {
      EXPECT_EQ(got, kInfinity) << x;
      continue;
    }
    EXPECT_LE(std::abs(got - exact), std::max(exact * 0x1p-23, 0x1p-149)) << x;
  }
  EXPECT_EQ(exponential(0), 1);
  EXPECT_EQ(exponential(-INFINITY), 0);
  EXPECT_TRUE(std::isnan(exponential(NAN)));
}

TEST(Emulator, OfAnOnlineSoftmaxHasItsOWhereverDComesFrom) {
  const Case c = parse_case("attention hq=2 lq=70 lk=200 d=32 scale=0.5");
  const Inputs inputs = make_inputs(c, Conventions::Poison::nan);
  const Tensor o = emulate(c, inputs, flash(), Conventions::EmptyRow::zero).o;
  EXPECT_EQ(share_of_equal(o, emulate(c, inputs, online_from_p_dp(), Conventions::EmptyRow::zero).o), 1);
}

}  // namespace
}  // namespace attnbench
