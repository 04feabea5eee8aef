#include "harness/attention/flops.hpp"

#include <vector>

#include <gtest/gtest.h>

namespace attnbench {
namespace {

/// The semantics of problem.hpp, pair by pair.
bool sees(const Problem& p, int64_t i, int64_t j, int64_t lq, int64_t lk) {
  const int64_t centre = i + (p.align == Align::bottom_right ? lk - lq : 0);
  if (p.mask == Mask::causal && j > centre) return false;
  if (!p.window) return true;
  if (p.window->left >= 0 && j < centre - p.window->left) return false;
  return p.window->right < 0 || j <= centre + p.window->right;
}

int64_t count_pairs(const Problem& p, const SequenceLengths& lengths) {
  int64_t pairs = 0;
  for (size_t n = 0; n < lengths.q.size(); ++n)
    for (int64_t i = 0; i < lengths.q[n]; ++i)
      for (int64_t j = 0; j < lengths.k[n]; ++j) pairs += sees(p, i, j, lengths.q[n], lengths.k[n]);
  return pairs;
}

TEST(Flops, VisiblePairsAreThoseOfACountPairByPair) {
  SequenceLengths lengths;
  lengths.q = {0, 1, 7, 5, 12, 3, 9};
  lengths.k = {4, 1, 7, 11, 5, 0, 8};
  const std::vector<std::optional<SlidingWindow>> windows = {std::nullopt,         SlidingWindow{-1, -1}, SlidingWindow{0, 0},
                                                             SlidingWindow{2, -1}, SlidingWindow{-1, 3},  SlidingWindow{3, 1}};
  for (Mask mask : {Mask::none, Mask::causal})
    for (Align align : {Align::bottom_right, Align::top_left})
      for (const auto& window : windows) {
        Problem p;
        p.mask = mask;
        p.align = align;
        p.window = window;
        EXPECT_EQ(visible_pairs(p, lengths), count_pairs(p, lengths))
            << name_of(mask) << " " << name_of(align) << (window ? " window" : "");
      }
}

TEST(Flops, ExactAndPaperConventions) {
  Problem p;
  p.hq = 6;
  p.d = 64;
  p.dv = 32;
  SequenceLengths lengths;
  lengths.q = {4};
  lengths.k = {4};
  EXPECT_EQ(exact_flops(p, lengths, Pass::forward), 2.0 * 16 * 6 * 96);
  EXPECT_EQ(exact_flops(p, lengths, Pass::backward), 2.0 * 16 * 6 * (3 * 64 + 2 * 32));
  p.dv = 64;
  p.mask = Mask::causal;
  EXPECT_EQ(exact_flops(p, lengths, Pass::forward), 2.0 * 10 * 6 * 128) << "the diagonal counts";
  EXPECT_EQ(paper_flops(p, lengths, Pass::forward), 4.0 * 16 * 6 * 64 / 2);
  EXPECT_EQ(paper_flops(p, lengths, Pass::backward), 2.5 * 4.0 * 16 * 6 * 64 / 2);
}

}  // namespace
}  // namespace attnbench
