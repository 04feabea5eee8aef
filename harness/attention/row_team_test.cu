// A team of threads on a GPU: sums and maxima of rows of every width, one after the other, are those of one thread.
#include "harness/attention/row_team.hpp"

#include <cmath>
#include <vector>

#include <cuda_runtime.h>
#include <gtest/gtest.h>

namespace attnbench {
namespace {

constexpr int64_t kRows = 300;

struct OfRow {
  double sum, largest, sum_again;
  uint64_t wrapped;
};

struct TeamStep {
  const double* numbers;
  int64_t width;
  OfRow* rows;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t row) const {
    const double* x = numbers + row * width;
    double sum = 0, largest = -INFINITY;
    uint64_t wrapped = 0;
    team.each(width, [&](int64_t i) {
      sum += x[i];
      largest = larger(x[i], largest);
      wrapped += static_cast<uint64_t>(i + 1) * 0x9e3779b97f4a7c15u;
    });
    const OfRow all{team.sum(sum), team.max(largest), team.sum(2 * sum), team.wrapping_sum(wrapped)};
    if (team.writes()) rows[row] = all;
  }
};

TEST(RowTeamOnGpu, CombinesWhatItsThreadsHave) {
  for (const int64_t width : {1, 31, 32, 33, 64, 100, 255, 256, 257, 5000}) {
    double* numbers = nullptr;
    OfRow* rows = nullptr;
    ASSERT_EQ(cudaMallocManaged(&numbers, kRows * width * sizeof(double)), cudaSuccess);
    ASSERT_EQ(cudaMallocManaged(&rows, kRows * sizeof(OfRow)), cudaSuccess);
    for (int64_t i = 0; i < kRows * width; ++i) numbers[i] = static_cast<double>(i * 7919 % 1009) - 500;  // whose sums are exact
    numbers[5 * width + width / 2] = NAN;
    for_each_row(/*on_gpu=*/true, kRows, width, TeamStep{numbers, width, rows});
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    std::vector<OfRow> expected(kRows);
    for_each_row(/*on_gpu=*/false, kRows, width, TeamStep{numbers, width, expected.data()});
    for (int64_t row = 0; row < kRows; ++row) {
      ASSERT_EQ(rows[row].wrapped, expected[row].wrapped) << row << " of " << width;
      if (row == 5) {
        ASSERT_TRUE(std::isnan(rows[row].sum) && std::isnan(rows[row].largest)) << width;
        continue;
      }
      ASSERT_EQ(rows[row].sum, expected[row].sum) << row << " of " << width;
      ASSERT_EQ(rows[row].sum_again, 2 * expected[row].sum) << row << " of " << width;
      ASSERT_EQ(rows[row].largest, expected[row].largest) << row << " of " << width;
    }
    cudaFree(numbers);
    cudaFree(rows);
  }
}

TEST(RowTeamOnGpu, RefusesMoreRowsThanOneLaunchHas) {
  EXPECT_THROW(for_each_row(/*on_gpu=*/true, int64_t(1) << 31, 32, TeamStep{}), std::length_error);
}

}  // namespace
}  // namespace attnbench
