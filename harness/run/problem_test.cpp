#include "harness/run/problem.hpp"

#include <gtest/gtest.h>

#include <set>

namespace attnbench {
namespace {

using Lengths = std::vector<int64_t>;

Problem with_lengths(LengthSpec lens, LengthSpec klens = {}) {
  Problem problem;
  problem.d = 64;
  problem.lens = std::move(lens);
  problem.klens = std::move(klens);
  problem.b = 4;
  return problem;
}

TEST(Problem, ScaleIsOneOverTheRootOfTheHeadDimUnlessGiven) {
  Problem problem;
  problem.d = 64;
  EXPECT_EQ(problem.softmax_scale(), 0.125);
  problem.scale = 0.5;
  EXPECT_EQ(problem.softmax_scale(), 0.5);
}

TEST(Problem, AlignmentMattersWhereThereIsADiagonal) {
  Problem problem;
  EXPECT_FALSE(problem.uses_alignment());
  problem.alibi = true;
  EXPECT_TRUE(problem.uses_alignment());
  problem.alibi = false;
  problem.window = SlidingWindow{1, 1};
  EXPECT_TRUE(problem.uses_alignment());
  problem.window.reset();
  problem.mask = Mask::causal;
  EXPECT_TRUE(problem.uses_alignment());
}

TEST(SequenceLengths, EqualLengthsAreRepeated) {
  Problem problem;
  problem.b = 3, problem.lq = 5, problem.lk = 7;
  const auto lengths = sequence_lengths(problem, 0);
  EXPECT_EQ(lengths.q, Lengths({5, 5, 5}));
  EXPECT_EQ(lengths.k, Lengths({7, 7, 7}));
  EXPECT_EQ(lengths.total_q(), 15);
  EXPECT_EQ(lengths.total_k(), 21);
  EXPECT_EQ(lengths.q_pitch, 0);
}

TEST(SequenceLengths, KeysFollowTheQueriesUnlessGiven) {
  const auto same = sequence_lengths(with_lengths(Lengths{17, 64, 0, 129}), 0);
  EXPECT_EQ(same.k, Lengths({17, 64, 0, 129}));
  const auto drawn = sequence_lengths(with_lengths(UniformLengths{1, 1000}), 0);
  EXPECT_EQ(drawn.k, drawn.q);
  const auto own = sequence_lengths(with_lengths(UniformLengths{1, 1000}, UniformLengths{1, 1000}), 0);
  EXPECT_EQ(own.q, drawn.q);
  EXPECT_NE(own.k, own.q);
}

TEST(SequenceLengths, DrawnLengthsReachBothBoundsAndFollowTheSeed) {
  Problem problem = with_lengths(UniformLengths{3, 6});
  problem.b = 1000;
  const auto lengths = sequence_lengths(problem, 1);
  EXPECT_EQ(std::set<int64_t>(lengths.q.begin(), lengths.q.end()), std::set<int64_t>({3, 4, 5, 6}));
  EXPECT_EQ(sequence_lengths(problem, 1).q, lengths.q);
  EXPECT_NE(sequence_lengths(problem, 2).q, lengths.q);
}

// Recorded runs name these inputs by their case line: the numbers behind a line may never change.
TEST(SequenceLengths, DrawnLengthsStayWhatTheyWere) {
  EXPECT_EQ(sequence_lengths(with_lengths(UniformLengths{0, 100}), 7).q, Lengths({19, 10, 27, 4}));
  EXPECT_EQ(token_positions(Pad::holes, 4, 8, 1, 7), Lengths({1, 2, 3, 5}));
}

TEST(SequenceLengths, PaddedRowsAreAsLongAsTheLongestAndHolesNeedRoom) {
  Problem problem = with_lengths(Lengths{3, 8, 0, 2}, Lengths{1, 1, 2, 3});
  problem.layout = Layout::padded;
  EXPECT_EQ(sequence_lengths(problem, 0).q_pitch, 8);
  EXPECT_EQ(sequence_lengths(problem, 0).k_pitch, 3);
  problem.pad = Pad::holes;
  EXPECT_EQ(sequence_lengths(problem, 0).q_pitch, 10);
  EXPECT_EQ(sequence_lengths(problem, 0).k_pitch, 4);
}

TEST(TokenPositions, RightAndLeftPaddingAreBlocks) {
  EXPECT_EQ(token_positions(Pad::right, 3, 5, 0, 0), Lengths({0, 1, 2}));
  EXPECT_EQ(token_positions(Pad::left, 3, 5, 0, 0), Lengths({2, 3, 4}));
  EXPECT_TRUE(token_positions(Pad::left, 0, 5, 0, 0).empty());
}

TEST(TokenPositions, HolesKeepTheNumberOfTokensAndTheirOrder) {
  for (int64_t length = 0; length <= 40; ++length) {
    for (int64_t sequence = 0; sequence < 5; ++sequence) {
      const auto positions = token_positions(Pad::holes, length, 40, sequence, 9);
      ASSERT_EQ(static_cast<int64_t>(positions.size()), length);
      for (size_t i = 1; i < positions.size(); ++i) ASSERT_LT(positions[i - 1], positions[i]);
      if (length == 0) continue;
      ASSERT_GE(positions.front(), 0);
      ASSERT_LT(positions.back(), 40);
    }
  }
}

TEST(TokenPositions, HolesDifferBySequenceAndSeedAndFallEverywhere) {
  EXPECT_NE(token_positions(Pad::holes, 20, 40, 0, 9), token_positions(Pad::holes, 20, 40, 1, 9));
  EXPECT_NE(token_positions(Pad::holes, 20, 40, 0, 9), token_positions(Pad::holes, 20, 40, 0, 8));
  std::vector<int> taken(40);
  constexpr int kRows = 4000;
  for (int64_t sequence = 0; sequence < kRows; ++sequence)
    for (int64_t position : token_positions(Pad::holes, 10, 40, sequence, 0)) ++taken[position];
  // Each position is taken with probability 1/4: 1000 times, with a standard deviation of 27.
  for (int count : taken) EXPECT_NEAR(count, kRows / 4, 6 * 27);
}

}  // namespace
}  // namespace attnbench
