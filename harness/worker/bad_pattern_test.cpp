// Planted patterns are named, with their numbers; chance is not.
#include "harness/worker/bad_pattern.hpp"

#include <functional>
#include <random>

#include <gtest/gtest.h>

namespace attnbench {
namespace {

struct Where {
  int64_t sequence, token, head, channel, length;
};

/// Lengths 200, 128 and 77; 4 heads in groups of 2; 64 channels. Elements in `in` are bad, but for a share `spared` of them.
BadElements planted(const std::function<bool(const Where&)>& in, double spared = 0) {
  BadElements e;
  e.offsets = {0, 200, 328, 405};
  e.heads = 4;
  e.channels = 64;
  e.group = 2;
  e.unseen.assign(405, 0);
  std::mt19937 random(7);
  std::bernoulli_distribution is_spared(spared);
  for (int64_t n = 0; n < 3; ++n)
    for (int64_t token = 0; token < e.offsets[n + 1] - e.offsets[n]; ++token)
      for (int64_t head = 0; head < e.heads; ++head)
        for (int64_t channel = 0; channel < e.channels; ++channel)
          e.bad.push_back(in({n, token, head, channel, e.offsets[n + 1] - e.offsets[n]}) && !is_spared(random));
  return e;
}

/// The text, and that all of the bad elements are explained.
std::string found(const BadElements& e) {
  const BadPattern pattern = explain(e);
  const auto bad = int64_t(std::count(e.bad.begin(), e.bad.end(), 1));
  if (!pattern.text.empty()) {
    EXPECT_EQ(pattern.explained, bad) << pattern.text;
  }
  return pattern.text;
}

TEST(BadPattern, NamesTheRowsOfATile) {
  EXPECT_EQ(found(planted([](const Where& w) { return w.token % 64 == 63 || w.token == w.length - 1; })),
            "the last query of each tile of 64 of every sequence");
  EXPECT_EQ(found(planted([](const Where& w) { return w.token % 32 == 0; })),
            "the first query of each tile of 32 of every sequence");
  EXPECT_EQ(found(planted([](const Where& w) { return w.token == w.length - 1; })), "the last query of every sequence");
  EXPECT_EQ(found(planted([](const Where& w) { return w.token / 64 == 1; })), "queries 64..127 (tile 1 of 64) of every sequence");
  EXPECT_EQ(found(planted([](const Where& w) { return w.token >= 48; })), "queries from 48 on of every sequence");
  EXPECT_EQ(found(planted([](const Where& w) { return w.token < 96; })), "queries 0..95 of every sequence");
  EXPECT_EQ(found(planted([](const Where& w) { return w.token >= 32 && w.token < 80; })), "queries 32..79 of every sequence");
}

TEST(BadPattern, NamesTails) {
  const auto tail = planted([](const Where& w) { return w.token >= w.length / 64 * 64; });
  EXPECT_EQ(found(tail), "the queries behind the last whole tile of 64 of every sequence");
  EXPECT_EQ(explain(tail).tokens, "tail");
  EXPECT_EQ(found(planted([](const Where& w) { return w.token >= (w.length - 1) / 64 * 64 && w.sequence == 1; })),
            "the last tile of 64 queries, sequence 1");
}

TEST(BadPattern, NamesHeadsChannelsAndSequences) {
  EXPECT_EQ(found(planted([](const Where& w) { return w.head == 2; })), "head 2");
  EXPECT_EQ(found(planted([](const Where& w) { return w.head / 2 == 1; })), "heads 2..3 (of key head 1)");
  EXPECT_EQ(found(planted([](const Where& w) { return w.head % 2 == 0; })), "query head 0 of each key head");
  EXPECT_EQ(found(planted([](const Where& w) { return w.head % 2 == 1; })), "all but the first query head of each key head");
  EXPECT_EQ(found(planted([](const Where& w) { return w.head == 1 || w.head == 2; })), "heads 1, 2");
  EXPECT_EQ(found(planted([](const Where& w) { return w.channel / 8 == 4 && w.head == 3; })),
            "the last head (3), channels 32..39 (8 wide)");
  EXPECT_EQ(found(planted([](const Where& w) { return w.channel >= 48; })), "channels 48..63 (16 wide)");
  EXPECT_EQ(found(planted([](const Where& w) { return w.sequence > 0; })), "every sequence but the first");
  EXPECT_EQ(
      found(planted([](const Where& w) { return w.token / 16 == 2 && w.channel / 8 == 1 && w.head == 1 && w.sequence == 1; })),
      "queries 32..47 (tile 2 of 16), head 1, channels 8..15 (8 wide), sequence 1");
}

TEST(BadPattern, NamesWhatTheMaskHides) {
  BadElements e = planted([](const Where& w) { return w.token >= w.length - 19; });
  for (size_t t = 0; t < e.unseen.size(); ++t) e.unseen[t] = e.bad[t * 256];
  EXPECT_EQ(found(e), "queries that see no key of every sequence");
  e.token = "key";
  EXPECT_EQ(found(e), "keys that no query sees of every sequence");
}

TEST(BadPattern, SaysHowMuchItExplains) {
  BadElements e = planted([](const Where& w) { return w.head == 2; }, 0.4);
  e.bad[0] = 1;  // and one more, elsewhere
  const BadPattern pattern = explain(e);
  EXPECT_EQ(pattern.text, "head 2");
  EXPECT_EQ(pattern.elements, 405 * 64);
  EXPECT_EQ(pattern.explained, std::count(e.bad.begin(), e.bad.end(), 1) - 1);
  EXPECT_EQ(pattern.rows, 405 * 4);
  EXPECT_EQ(pattern.rows_hit, 405 + 1);
}

TEST(BadPattern, KnowsOneElementAndAll) {
  EXPECT_EQ(found(planted([](const Where& w) { return w.sequence == 1 && w.token == 5 && w.head == 1 && w.channel == 9; })),
            "a single element");
  EXPECT_EQ(found(planted([](const Where&) { return true; })), "every element");
  EXPECT_EQ(found(planted([](const Where&) { return true; }, 0.01)), "nearly every element");
  const BadPattern none = explain(planted([](const Where&) { return false; }));
  EXPECT_EQ(none.text, "");
  EXPECT_EQ(none.rows_hit, 0);
}

class Scattered : public testing::TestWithParam<double> {};

TEST_P(Scattered, BadnessHasNoPattern) {
  for (unsigned seed = 1; seed <= 20; ++seed) {
    BadElements e = planted([](const Where&) { return false; });
    std::mt19937 random(seed);
    std::bernoulli_distribution is_bad(GetParam());
    for (uint8_t& bad : e.bad) bad = is_bad(random);
    if (std::count(e.bad.begin(), e.bad.end(), 1) == 1) continue;
    const BadPattern pattern = explain(e);
    EXPECT_EQ(pattern.text, "") << GetParam() << " seed " << seed;
    EXPECT_EQ(pattern.tokens, "all");
    EXPECT_EQ(pattern.rows, 405 * 4);
  }
}
INSTANTIATE_TEST_SUITE_P(Chances, Scattered, testing::Values(2e-5, 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.6, 0.9));

TEST(BadPattern, HoldsForMoreElementsThanItLooksAt) {
  BadElements e;
  e.offsets = {0, 2000};
  e.heads = 2;
  e.channels = 128;
  for (int64_t i = 0; i < 2000 * 2 * 128; ++i) e.bad.push_back(i / 256 >= 448 && i / 128 % 2 == 1);
  const BadPattern pattern = explain(e);
  EXPECT_EQ(pattern.text, "queries from 448 on, the last head (1)");
  EXPECT_EQ(pattern.explained, (2000 - 448) * 128);
  EXPECT_EQ(pattern.elements, (2000 - 448) * 128);
}

}  // namespace
}  // namespace attnbench
