#include "harness/worker/heat_map.hpp"

#include <gtest/gtest.h>

namespace attnbench {
namespace {

using Cells = std::vector<std::vector<double>>;

TEST(HeatMap, OfASmallTensorHasACellForEachRow) {
  const HeatMap map = bad_map({0, 1, 4, 0, 2, 3}, {0, 2, 3}, 2, 4);
  EXPECT_EQ(map.measure, "percent_bad");
  EXPECT_EQ(map.cells, (Cells{{0, 100}, {25, 0}, {50, -1}, {75, -1}}));
}

TEST(HeatMap, RoundsABadElementUp) {
  std::vector<double> sums(64, 0);
  sums[40] = 1;
  const HeatMap map = bad_map(sums, {0, 64}, 1, 1000);
  EXPECT_EQ(map.tokens_per_column, 2);
  ASSERT_EQ(map.cells.size(), 1u);
  EXPECT_EQ(map.cells[0].size(), 32u);
  EXPECT_EQ(map.cells[0][20], 1);
  EXPECT_EQ(map.cells[0][21], 0);
}

TEST(HeatMap, StaysSmall) {
  std::vector<int64_t> offsets{0};
  for (int i = 0; i < 50; ++i) offsets.push_back(offsets.back() + 100 + i);
  const HeatMap many = rms_map(std::vector<double>(size_t(offsets.back()) * 12, 8), offsets, 12, 2);
  EXPECT_EQ(many.measure, "rms_z");
  EXPECT_EQ(many.heads_per_row, 12);
  EXPECT_EQ(many.sequences_per_row, 4);
  EXPECT_EQ(many.tokens_per_column, 8);
  EXPECT_EQ(many.cells.size(), 13u);
  EXPECT_EQ(many.cells[0].size(), 19u);
  EXPECT_EQ(many.cells[0][0], 2);
  const HeatMap heads = bad_map(std::vector<double>(64 * 3, 0), {0, 1, 2, 3}, 64, 1);
  EXPECT_EQ(heads.sequences_per_row, 1);
  EXPECT_EQ(heads.heads_per_row, 13);
  EXPECT_EQ(heads.cells.size(), 15u);
}

}  // namespace
}  // namespace attnbench
