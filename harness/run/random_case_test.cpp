#include "harness/run/random_case.hpp"

#include <map>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "harness/run/case_keys.hpp"
#include "harness/run/names.hpp"

namespace attnbench {
namespace {

constexpr uint64_t kSeed = 0;
constexpr uint64_t kNumbers = 2000;

/// What each key was written as, by the cases of the seed.
std::map<std::string_view, std::set<std::string>> values_of_keys() {
  std::map<std::string_view, std::set<std::string>> values;
  for (uint64_t number = 0; number < kNumbers; ++number)
    for (const Key& key : case_keys()) values[key.name].insert(key.format(random_case(kSeed, number)));
  return values;
}

template <class E>
void expect_all_names(const std::set<std::string>& values) {
  for (std::string_view name : all_names<E>()) EXPECT_TRUE(values.contains(std::string(name))) << name;
}

TEST(RandomCase, IsTheSameEverywhere) {
  EXPECT_EQ(format_case(random_case(0, 0)),
            "attention d=64 lens=64+35 klens=1024+67 dtype=fp32 dout=one_hot strides=dout_transposed seed=27986");
  EXPECT_EQ(format_case(random_case(7, 1000)),
            "attention hq=9 hkv=3 d=80 lens=uniform(0,63) dtype=fp32 mask=causal align=top_left fill=deep_negative "
            "dout=ones seed=1136");
  for (uint64_t number = 0; number < kNumbers; ++number)
    ASSERT_EQ(format_line(random_case(kSeed, number)), format_line(random_case(kSeed, number)));
  EXPECT_NE(format_case(random_case(0, 1)), format_case(random_case(1, 1)));
}

TEST(RandomCase, IsAValidLineWithinTheBounds) {
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, ~uint64_t{0}}) {
    for (uint64_t number = 0; number < 5 * kNumbers; ++number) {
      const Case c = random_case(seed, number);
      ASSERT_EQ(parse_case(format_line(c)), c) << format_line(c);
      ASSERT_FALSE(c.metadata.timed);
      const SequenceLengths lengths = sequence_lengths(c.problem, c.seed);
      ASSERT_LE(c.problem.b * c.problem.hq * lengths.max_q() * lengths.max_k(), kMostScores) << format_case(c);
      ASSERT_LE(scores_of(c.problem), kMostScores) << format_case(c);
      ASSERT_LE(elements_of(c.problem), kMostElements) << format_case(c);
    }
  }
}

TEST(RandomCase, CoversTheGrammar) {
  auto values = values_of_keys();
  for (const Key& key : case_keys()) EXPECT_GE(values[key.name].size(), 2u) << key.name;
  expect_all_names<Dtype>(values["dtype"]);
  expect_all_names<Mask>(values["mask"]);
  expect_all_names<Align>(values["align"]);
  expect_all_names<Layout>(values["layout"]);
  expect_all_names<Pad>(values["pad"]);
  expect_all_names<Fill>(values["fill"]);
  expect_all_names<Dout>(values["dout"]);
  for (std::string_view name : all_names<Strides>())
    EXPECT_EQ(values["strides"].contains(std::string(name)), name != "far") << name << ": gigabytes are not for a fuzz";
  for (const char* key : {"lq", "lk"})
    for (const char* length : {"0", "1", "15", "16", "17", "31", "32", "33", "63", "64", "65", "127", "128", "129"})
      EXPECT_TRUE(values[key].contains(length)) << key << "=" << length;
}

TEST(RandomCase, KnowsNoComfort) {
  std::map<std::string, int> seen;
  for (uint64_t number = 0; number < kNumbers; ++number) {
    const Problem p = random_case(kSeed, number).problem;
    const SequenceLengths lengths = sequence_lengths(p, 0);
    seen["more queries than keys"] += lengths.max_q() > lengths.max_k();
    seen["more keys than queries"] += lengths.max_q() < lengths.max_k();
    seen["no query at all"] += lengths.total_q() == 0;
    seen["queries without a key"] += lengths.total_k() == 0 && lengths.total_q() > 0;
    seen["MQA"] += p.hkv == 1 && p.hq > 1;
    seen["GQA"] += p.hkv > 1 && p.hq > p.hkv;
    seen["another dv"] += p.dv != p.d;
    seen["an odd head dim"] += p.d % 2 == 1;
    seen["a drawn length"] += std::holds_alternative<UniformLengths>(p.lens);
    seen["a window with one end"] += p.window && (p.window->left < 0 || p.window->right < 0);
    if (const auto* list = std::get_if<std::vector<int64_t>>(&p.lens))
      seen["an empty sequence among others"] += lengths.total_q() > 0 && std::set(list->begin(), list->end()).contains(0);
    seen["nothing rare"] += !p.window && p.softcap == 0 && !p.alibi && !p.sink && p.dropout.p == 0;
  }
  for (const auto& [what, count] : seen) EXPECT_GE(count, 20) << what;
  EXPECT_GE(seen["nothing rare"], static_cast<int>(kNumbers / 2));
}

}  // namespace
}  // namespace attnbench
