// How rows of several tensors are cut into stretches, and put together again.
#include "harness/worker/row_stretches.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

namespace attnbench {
namespace {

at::Tensor rows(int64_t count, int64_t channels) {
  return at::zeros({count, channels}, at::kDouble);
}

using Parts = std::vector<std::vector<int64_t>>;

/// {tensor, first, rows} of each part.
std::vector<Parts> cut(const std::vector<at::Tensor>& tensors, int64_t elements, bool together) {
  std::vector<Parts> all;
  for (const RowStretch& stretch : row_stretches(tensors, elements, together)) {
    Parts& parts = all.emplace_back();
    for (const RowPart& part : stretch.parts) parts.push_back({static_cast<int64_t>(part.tensor), part.first, part.rows});
  }
  return all;
}

TEST(RowStretches, AreOfOneTensorOnACpu) {
  EXPECT_EQ(cut({rows(5, 4), rows(0, 4), rows(2, 4)}, 8, false),
            (std::vector<Parts>{{{0, 0, 2}}, {{0, 2, 2}}, {{0, 4, 1}}, {{2, 0, 2}}}));
  EXPECT_EQ(cut({rows(2, 9)}, 8, false), (std::vector<Parts>{{{0, 0, 1}}, {{0, 1, 1}}})) << "a row is not cut";
  EXPECT_EQ(cut({rows(0, 4)}, 8, false), std::vector<Parts>{});
}

TEST(RowStretches, OnAGpuTakeNeighboursWithAsManyChannels) {
  EXPECT_EQ(cut({rows(3, 4), rows(0, 4), rows(4, 4), rows(2, 2), rows(1, 4)}, 20, true),
            (std::vector<Parts>{{{0, 0, 3}, {2, 0, 2}}, {{2, 2, 2}}, {{3, 0, 2}}, {{4, 0, 1}}}));
  EXPECT_EQ(cut({rows(5, 4), rows(1, 4)}, 20, true), (std::vector<Parts>{{{0, 0, 5}}, {{1, 0, 1}}}));
}

TEST(RowStretches, GiveTheirRowsInOrderAndAnswersByPart) {
  const std::vector<at::Tensor> tensors{at::arange(6, at::kDouble).view({3, 2}), 10 + at::arange(8, at::kDouble).view({4, 2})};
  const std::vector<RowStretch> stretches = row_stretches(tensors, 10, true);
  ASSERT_EQ(stretches.size(), 2u);
  EXPECT_TRUE(at::equal(stretches[0].of(tensors), at::cat({tensors[0], tensors[1].narrow(0, 0, 2)})));
  EXPECT_TRUE(at::equal(stretches[1].of(tensors), tensors[1].narrow(0, 2, 2)));
  const at::Tensor together = stretches[0].of(tensors);
  const at::Tensor sums =
      stretches[0].by_parts([&](int64_t first, int64_t count) { return together.narrow(0, first, count).sum(); });
  EXPECT_TRUE(at::equal(sums, at::stack({tensors[0].sum(), tensors[1].narrow(0, 0, 2).sum()})));
}

TEST(ByStretches, SaysOfEachTensorWhatItsPartsAre) {
  const auto sizes = [](const std::vector<at::Tensor>& tensors) {
    return by_stretches(tensors, [&](const RowStretch& stretch) {
      return stretch.by_parts([&](int64_t, int64_t count) { return at::zeros({1}, at::kDouble) + static_cast<double>(count); });
    });
  };
  constexpr int64_t kMany = (1 << 14) + 1;  // a row more than a stretch on a CPU
  const std::vector<at::Tensor> parts = sizes({rows(kMany, 1), rows(0, 1), rows(3, 2)});
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_EQ(parts[0].sizes(), at::IntArrayRef({2, 1}));
  EXPECT_EQ(parts[0].sum().item<double>(), kMany);
  EXPECT_EQ(parts[1].size(0), 0);
  EXPECT_EQ(parts[2].item<double>(), 3);
  EXPECT_TRUE(sizes({}).empty());
}

}  // namespace
}  // namespace attnbench
