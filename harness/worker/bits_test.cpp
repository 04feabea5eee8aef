// Bits held against bits, and sequences moved into another case.
#include "harness/worker/bits.hpp"

#include <limits>

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include "harness/attention/tokens.hpp"
#include "harness/run/test_device.hpp"
#include "harness/worker/regroup.hpp"

namespace attnbench {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
TEST(Bits, EqualOnesHaveNoDifference) {
  const at::Tensor a = at::tensor({1.0, kNan, -kInfinity, 0.0}, at::kFloat);
  EXPECT_FALSE(bit_difference(a, a.clone()));
  EXPECT_TRUE(same_bits(a, a.clone()));
  EXPECT_FALSE(same_bits(a, a.to(at::kHalf)));
  EXPECT_FALSE(same_bits(a, at::Tensor()));
  EXPECT_TRUE(same_bits(at::Tensor(), at::Tensor()));
  EXPECT_THROW(bit_difference(a, a.to(at::kHalf)), std::invalid_argument);
}

TEST(Bits, ValuesAreTheSameByValueOrByBits) {
  const at::Tensor a = at::tensor({1.0, kNan, -kInfinity, 0.0}, at::kFloat),
                   other = at::tensor({1.0, kNan, 0.0, -0.0}, at::kFloat);
  const at::Tensor negative_zero = at::tensor({1.0, kNan, -kInfinity, -0.0}, at::kFloat), kept = at::tensor({1, 0}).to(at::kBool);
  const at::Tensor undefined;
  at::Tensor no_nan = a.clone(), other_nan = a.clone();
  no_nan[1] = 1;
  other_nan.view(at::kInt)[1] += 1;
  const std::vector<bool> expected{true, true, false, false, false, false, false, false, true, true, false, false};
  EXPECT_EQ(same_values({{a, a.clone()},
                         {a, negative_zero},
                         {a, other},
                         {a, other_nan},
                         {a, no_nan},
                         {no_nan, a},
                         {a, a.view({2, 2})},
                         {a, undefined},
                         {undefined, undefined},
                         {kept, kept.clone()},
                         {kept, kept.logical_not()},
                         {a, a.to(at::kHalf)}}),
            expected);
  EXPECT_TRUE(same_values({}).empty());
}

TEST(Bits, CountsPlacesAndUnitsOfTheLastPlace) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf, at::kFloat}) {
    const at::Tensor a = at::tensor({1.0, 2.0, -4.0, 8.0}, at::kDouble).to(dtype).view({2, 2});
    at::Tensor b = a.clone();
    const at::ScalarType integer = b.element_size() == 2 ? at::kShort : at::kInt;
    b.view(integer).view({-1})[2] += 3;  // away from zero
    b.view(integer).view({-1})[3] -= 1;
    const auto difference = bit_difference(a, b);
    ASSERT_TRUE(difference);
    EXPECT_EQ(difference->elements, 2);
    EXPECT_EQ(difference->first, 2);
    EXPECT_EQ(difference->a, -4);
    EXPECT_LT(difference->b, -4);
    EXPECT_EQ(difference->max_ulp, 3);
  }
}

TEST(Bits, ZerosOfBothSignsAreNeighboursAndNanIsFarAway) {
  const auto ulp = [](double a, double b) {
    return bit_difference(at::tensor({a}, at::kDouble).to(at::kHalf), at::tensor({b}, at::kDouble).to(at::kHalf)).value().max_ulp;
  };
  EXPECT_EQ(ulp(0.0, -0.0), 0);
  const double smallest = std::ldexp(1.0, -24);
  EXPECT_EQ(ulp(smallest, -smallest), 2);
  EXPECT_EQ(ulp(1.0, kNan), kInfinity);
  EXPECT_EQ(ulp(kInfinity, 1.0), kInfinity);
}

class Regroup : public testing::TestWithParam<const char*> {};

/// Every tensor of the part holds what its sequences hold in the whole, and the poison elsewhere.
TEST_P(Regroup, KeepsTheValuesOfEachSequence) {
  const Case c = parse_case(GetParam());
  const Inputs whole = make_inputs(c, Conventions::Poison::nan);
  for (const Layout layout : {Layout::packed, Layout::padded}) {
    const Regrouped part = regroup(c, whole, {2, 0}, layout, Conventions::Poison::nan, kCpu);
    EXPECT_EQ(part.inputs.lengths.q, (std::vector<int64_t>{whole.lengths.q[2], whole.lengths.q[0]}));
    EXPECT_EQ(part.inputs.lengths.k, (std::vector<int64_t>{whole.lengths.k[2], whole.lengths.k[0]}));
    EXPECT_EQ(part.c.problem.layout, layout);
    EXPECT_EQ(part.inputs.q.dim(), layout == Layout::padded ? 4 : 3);
    const auto expect_rows = [&](at::Tensor Inputs::*t, const std::vector<int64_t>& rows, const std::vector<int64_t>& ranks,
                                 const std::vector<int64_t>& of_whole) {
      const at::Tensor& from = whole.*t;
      const at::Tensor all = rows_of(from, of_whole, from.size(-2), from.size(-1));
      const at::Tensor got = rows_of(part.inputs.*t, rows, from.size(-2), from.size(-1));
      EXPECT_TRUE(same_bits(got, all.index_select(0, at::tensor(ranks, at::kLong)))) << GetParam();
    };
    expect_rows(&Inputs::q, part.inputs.q_rows, part.q_ranks, whole.q_rows);
    expect_rows(&Inputs::dout, part.inputs.q_rows, part.q_ranks, whole.q_rows);
    expect_rows(&Inputs::k, part.inputs.k_rows, part.k_ranks, whole.k_rows);
    expect_rows(&Inputs::v, part.inputs.k_rows, part.k_ranks, whole.k_rows);
    EXPECT_EQ(at::isnan(part.inputs.q).any().item<bool>(), layout == Layout::padded) << "padding is poisoned";
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Regroup,
                         testing::Values("attention hq=4 hkv=2 d=8 lens=5+9+17 dtype=bf16",
                                         "attention hq=4 hkv=2 d=8 dv=4 lens=5+9+17 klens=3+4+8 dtype=fp16 scale=0.3",
                                         "attention hq=4 hkv=2 d=8 lens=5+9+17 layout=padded pad=holes dtype=fp32 seed=3",
                                         "attention hq=4 hkv=2 d=8 lens=5+9+17 strides=transposed layout=padded pad=left",
                                         "attention hq=4 hkv=2 d=8 lens=5+9+17 strides=stride0",
                                         "attention hq=4 hkv=2 d=8 lens=5+9+17 strides=unaligned",
                                         "attention hq=4 hkv=2 d=8 lens=uniform(3,9) b=3 seed=5"));

}  // namespace
}  // namespace attnbench
