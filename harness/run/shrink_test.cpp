#include "harness/run/shrink.hpp"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "harness/run/random_case.hpp"
#include "harness/run/shrink_record.hpp"

namespace attnbench {
namespace {

using Fails = std::function<bool(const Case&)>;

bool is_causal(const Case& c) {
  return c.problem.mask == Mask::causal;
}
SequenceLengths lengths_of(const Case& c) {
  return sequence_lengths(c.problem, c.seed);
}

/// The smallest case from every random case that fails. It still fails, and shrinking it again leaves it as it is.
void expect_smallest(const Fails& fails, const std::string& smallest) {
  constexpr uint64_t kNumbers = 1000;
  int shrunk = 0;
  for (uint64_t number = 0; number < kNumbers; ++number) {
    const Case found = random_case(3, number);
    if (!fails(found)) continue;
    ++shrunk;
    int tries = 0;
    const Case small = shrink(found, [&](const Case& c) { return ++tries, fails(c); });
    EXPECT_TRUE(fails(small)) << format_case(found);
    EXPECT_EQ(format_case(small), smallest) << "of " << format_case(found);
    EXPECT_LE(tries, kMostTries);
    EXPECT_EQ(small.metadata, found.metadata);
  }
  EXPECT_GE(shrunk, 3) << smallest;
}

TEST(Shrink, WhatAlwaysFailsBecomesTheSmallestCase) {
  expect_smallest([](const Case&) { return true; }, "attention d=1 lq=0");
}

TEST(Shrink, FindsTheLengthAndTheMask) {
  expect_smallest([](const Case& c) { return is_causal(c) && lengths_of(c).max_q() > 64; },
                  "attention d=1 lq=65 lk=0 mask=causal");
  expect_smallest([](const Case& c) { return is_causal(c) && lengths_of(c).max_k() > 64; },
                  "attention d=1 lq=0 lk=65 mask=causal");
}

TEST(Shrink, FindsHeadsThatAreShared) {
  expect_smallest([](const Case& c) { return c.problem.hq > c.problem.hkv && c.problem.hkv > 1; },
                  "attention hq=4 hkv=2 d=1 lq=0");
  expect_smallest([](const Case& c) { return c.problem.hkv > 2; }, "attention hq=3 d=1 lq=0");
}

TEST(Shrink, FindsTheHeadDim) {
  expect_smallest([](const Case& c) { return c.problem.d % 8 == 0 && c.problem.d > 16 && c.problem.d != c.problem.dv; },
                  "attention d=24 dv=1 lq=0");
  expect_smallest([](const Case& c) { return c.problem.dv > 100 && c.problem.d != c.problem.dv; }, "attention d=1 dv=101 lq=0");
}

TEST(Shrink, FindsTheSequenceThatMatters) {
  const auto has_an_empty_one_and_a_long_one = [](const Case& c) {
    const SequenceLengths lengths = lengths_of(c);
    return lengths.max_k() > 30 && std::ranges::find(lengths.k, 0) != lengths.k.end();
  };
  for (uint64_t number = 0; number < 2000; ++number) {
    const Case found = random_case(3, number);
    if (!has_an_empty_one_and_a_long_one(found)) continue;
    const SequenceLengths small = lengths_of(shrink(found, has_an_empty_one_and_a_long_one));
    EXPECT_EQ(small.k.size(), 2u) << format_case(found);
    EXPECT_EQ(small.total_k(), 31);
    EXPECT_EQ(small.total_q(), 0);
  }
}

TEST(Shrink, KeepsWhatTheFailureNeeds) {
  expect_smallest([](const Case& c) { return c.problem.align == Align::top_left && is_causal(c); },
                  "attention d=1 lq=0 mask=causal align=top_left");
  expect_smallest([](const Case& c) { return c.problem.pad == Pad::holes && c.fill == Fill::ramp; },
                  "attention d=1 lq=0 layout=padded pad=holes fill=ramp");
  expect_smallest([](const Case& c) { return c.problem.window && c.problem.window->left > 5 && c.problem.window->right >= 0; },
                  "attention d=1 lq=0 window=6:0");
  expect_smallest([](const Case& c) { return c.problem.tail > 5; }, "attention d=1 lq=0 tail=6");
}

TEST(RedAlike, AreWrongAndCrashedButNotNanAndANumber) {
  Record wrong, nan, crashed, mistrusted;
  wrong.status = nan.status = Status::failed;
  wrong.errors["o"].gates["z"] = {9, 7, 100, Gate::Verdict::fail, 7};
  nan.errors = wrong.errors;
  nan.errors["o"].gates["nonfinite"] = {3, 0, 100, Gate::Verdict::fail, 0};
  crashed.status = Status::error;
  mistrusted.status = Status::mistrusted;
  EXPECT_TRUE(are_red_alike(wrong, wrong));
  EXPECT_TRUE(are_red_alike(wrong, crashed));
  EXPECT_TRUE(are_red_alike(nan, crashed));
  EXPECT_FALSE(are_red_alike(nan, wrong));
  EXPECT_FALSE(are_red_alike(wrong, nan));
  EXPECT_FALSE(are_red_alike(wrong, mistrusted));
}

TEST(Shrink, TriesNoMoreThanItMayAndNothingTwice) {
  const Case found = random_case(3, 5);
  std::vector<std::string> tried;
  const auto fails = [&](const Case& c) {
    tried.push_back(format_case(c));
    return c.problem.d > 7;
  };
  shrink(found, fails, 7);
  EXPECT_EQ(tried.size(), 7u);
  tried.clear();
  shrink(found, fails);
  EXPECT_EQ(std::set(tried.begin(), tried.end()).size(), tried.size());
  EXPECT_EQ(format_case(shrink(found, [](const Case&) { return false; })), format_case(found));
}

TEST(Shrink, KnowsTheKeysOfALayer) {
  const auto smallest = [](const char* line, const Fails& fails) { return format_case(shrink(parse_case(line), fails)); };
  EXPECT_EQ(smallest("llama hq=4 hkv=2 d=64 s=24 past=8 lens=17+24 pad=left chunks=4 cache=on seed=3",
                     [](const Case&) { return true; }),
            "llama d=2 s=1");
  EXPECT_EQ(smallest("llama hq=4 d=64 s=24 lens=17+9 pad=left seed=3",
                     [](const Case& c) { return c.llama->mask && c.problem.pad == Pad::left && c.problem.lq > 4; }),
            "llama d=2 s=5 lens=0 pad=left");
}

}  // namespace
}  // namespace attnbench
