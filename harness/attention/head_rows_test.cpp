// Steps between tokens and rows of heads, which both oracles share: examples worked out by hand.
#include "harness/attention/head_rows.hpp"

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

namespace attnbench::head_rows {
namespace {

using Doubles = std::vector<double>;

constexpr bool kOnCpu = false;

TEST(HeadRows, GatherTakesTheHeadsOfItsGroupAndNothingWhereThereIsNoToken) {
  const Doubles tokens = {1, 2, NAN, 4};  // [2 tokens, 2 heads]
  const std::vector<int64_t> token_at = {1, -1, 0, 1};
  const auto rows = [&](int64_t first, int64_t group, bool nan_is_0) {
    Doubles gathered(8);
    gather(kOnCpu,
           {.tokens = {tokens.data()},
            .token_at = token_at.data(),
            .sequences = 2,
            .longest = 2,
            .channels = 1,
            .all_heads = 2,
            .first = first,
            .heads = 2,
            .group = group,
            .nan_is_0 = nan_is_0},
           gathered.data());
    return gathered;
  };
  EXPECT_EQ(rows(0, 1, true), (Doubles{0, 0, 4, 0, 1, 0, 2, 4}));
  EXPECT_EQ(rows(2, 2, true), (Doubles{4, 0, 4, 0, 2, 4, 2, 4})) << "query heads 2 and 3 have key head 1";
  const Doubles with_nan = rows(0, 1, false);
  EXPECT_TRUE(std::isnan(with_nan[0]) && std::isnan(with_nan[5]));
}

TEST(HeadRows, PlaceWritesTheHeadsOfAGroupAlone) {
  const Doubles rows = {1, 0, 3, -4}, allowance = {0.5, 0.5, 0.5, 0.5};  // [2 heads, longest = 2]
  const std::vector<int64_t> tokens = {1, 0}, places = {0, 1};
  Doubles plain(6, 7), squares(6, 7);  // [2 tokens, 3 heads]
  place(kOnCpu,
        {.tokens = tokens.data(), .places = places.data(), .count = 2, .longest = 2, .all_heads = 3, .first = 1, .heads = 2},
        {{{rows.data(), plain.data()}, {rows.data(), squares.data(), 1, true, allowance.data()}}, 2});
  EXPECT_EQ(plain, (Doubles{7, 0, -4, 7, 1, 3}));
  EXPECT_EQ(squares, (Doubles{7, 0, 16.25, 7, 1.25, 9.25})) << "no allowance for what is exactly 0";
}

TEST(HeadRows, SharesOfAGroupAreAddedUpWithTheirRounding) {
  const std::vector<int64_t> tokens = {0}, places = {0};
  const Spacing spacing = spacing_of(Dtype::bf16);
  const Doubles four = {1, 2, 3, 4}, two = {2, 3};
  const bool seen_in[] = {true};
  Doubles sums = {10, 20}, variances = {0, 0}, of_part = {0, 0}, seen = {0, 0};
  const Places all{.tokens = tokens.data(), .places = places.data(), .count = 1, .longest = 1, .all_heads = 4, .heads = 4};
  add_shares(kOnCpu, all,
             {.share = {{four.data(), sums.data()}, {four.data(), variances.data(), 1, four.data()}},
              .count = 2,
              .spacing = spacing,
              .group = 2,
              .seen_in = seen_in,
              .seen = seen.data()});
  EXPECT_EQ(sums, (Doubles{10 + 1 + 2, 20 + 3 + 4}));
  EXPECT_DOUBLE_EQ(variances[0], 3 + spacing.variance_at(1) + spacing.variance_at(2));
  EXPECT_DOUBLE_EQ(variances[1], 7 + spacing.variance_at(3) + spacing.variance_at(4));
  EXPECT_EQ(seen, (Doubles{1, 1}));
  Places middle = all;  // query heads 1 and 2, of different key heads
  middle.first = 1, middle.heads = 2;
  add_shares(kOnCpu, middle, {.share = {{two.data(), of_part.data()}}, .count = 1, .spacing = spacing, .group = 2});
  EXPECT_EQ(of_part, (Doubles{2, 3}));
}

TEST(HeadRows, FinishAddsRoundingAndAccumulationToKeysThatAreSeen) {
  const Spacing spacing = spacing_of(Dtype::fp16);
  const Doubles value = {1, 2, 3, 4}, allowance = {0.5, 0.5, 0.5, 0.5}, seen = {1, 0};  // [2 tokens, 1 head, 2 channels]
  const Doubles sum2 = {3, 1}, sum4 = {3, 1};
  const std::vector<int64_t> terms = {2, 5};
  Doubles variance = {0.25, 0.5, 0.75, 1}, freedom(2);
  finish(kOnCpu, {.value = value.data(),
                  .variance = variance.data(),
                  .allowance = allowance.data(),
                  .tokens = 2,
                  .heads = 1,
                  .channels = 2,
                  .spacing = spacing,
                  .accumulation = 0.01,
                  .terms = terms.data(),
                  .seen = seen.data(),
                  .sum2 = sum2.data(),
                  .sum4 = sum4.data(),
                  .freedom = freedom.data()});
  EXPECT_DOUBLE_EQ(variance[0], 0.25 + spacing.variance_at(1) + 0.25 + 1 * 0.02);
  EXPECT_DOUBLE_EQ(variance[1], 0.5 + spacing.variance_at(2) + 0.25 + 4 * 0.02);
  EXPECT_EQ(variance[2], 0);
  EXPECT_EQ(variance[3], 0);
  EXPECT_EQ(freedom, (Doubles{2, 1})) << "three equal sources, of which two channels show two";
}

/// An error that all channels share counts once; their own rounding counts for each of them.
TEST(HeadRows, FreedomIsLimitedByWhatChannelsShare) {
  const Spacing spacing = spacing_of(Dtype::bf16);
  const double rounding = spacing.variance_at(1);
  const Doubles value = {1, 1}, all_alike = {4}, apart = {2};  // [1 token, 1 head, 2 channels]
  const auto freedom = [&](double of_variance, const Doubles& correlated, double most) {
    Doubles variance(2, of_variance), found(1);
    const Doubles limit = {most};
    limit_freedom(kOnCpu, {.value = value.data(),
                           .variance = variance.data(),
                           .tokens = 1,
                           .heads = 1,
                           .channels = 2,
                           .spacing = spacing,
                           .correlated = correlated.data(),
                           .most = limit.data(),
                           .freedom = found.data()});
    return found[0];
  };
  EXPECT_NEAR(freedom(1e9 * rounding, all_alike, 2), 1, 1e-6);
  EXPECT_DOUBLE_EQ(freedom(rounding, all_alike, 2), 2);
  EXPECT_DOUBLE_EQ(freedom(2 * rounding, all_alike, 2), 4 / (2 + 0.25 * 2));
  EXPECT_DOUBLE_EQ(freedom(1e9 * rounding, apart, 2), 2);
  EXPECT_DOUBLE_EQ(freedom(rounding, all_alike, 1.5), 1.5);
}

TEST(HeadRows, ChannelsThatAreZeroOrNotFiniteCorrelateWithNone) {
  const Doubles products = {4, 2,   2,   1,     // the second channel is half of the first one
                            4, 0,   0,   0,     // it is zeros
                            4, 1,   1,   1,     // r = 1/2
                            4, NAN, NAN, NAN};  // it is not finite
  Doubles correlated(4);
  correlate(kOnCpu, products.data(), 4, 2, correlated.data());
  EXPECT_EQ(correlated, (Doubles{4, 1, 2.5, 1}));
}

}  // namespace
}  // namespace attnbench::head_rows
