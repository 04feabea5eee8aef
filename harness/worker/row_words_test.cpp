// Memory that is summed and compared in stretches: what one launch has of several, their ends, and what is told apart.
#include "harness/worker/row_words.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

namespace attnbench {
namespace {

constexpr int64_t kStretch = 32 << 10;  // bytes
const std::vector<int64_t> kSizes{0, 1, 7, 8, 9, kStretch - 8, kStretch - 1, kStretch, kStretch + 3, 40 * kStretch + 5};

/// Memory of `bytes` that begins at a word and ends where nothing may be read any more, so that a sanitizer sees it.
std::vector<uint8_t> numbered(int64_t bytes) {
  std::vector<uint8_t> memory(static_cast<size_t>(bytes));
  for (size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<uint8_t>(i * 37 + i / 256);
  return memory;
}

/// Its last step: Vigna's public-domain code.
uint64_t splitmix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

TEST(Fingerprints, AreThoseOfEachAlone) {
  std::vector<std::vector<uint8_t>> memories;
  std::vector<Words> all;
  std::vector<uint64_t> alone;
  for (int repeats = 0; repeats < 2; ++repeats)  // more than go into one launch
    for (const int64_t bytes : kSizes) memories.push_back(numbered(bytes));
  for (const std::vector<uint8_t>& memory : memories) {
    all.push_back({memory.data(), static_cast<int64_t>(memory.size())});
    uint64_t sum = 0;
    for (size_t i = 0; i * 8 < memory.size(); ++i) {
      uint64_t word = 0;
      std::memcpy(&word, memory.data() + i * 8, std::min<size_t>(8, memory.size() - i * 8));
      sum += splitmix64(word + (i + 1) * 0x9e3779b97f4a7c15u);
    }
    alone.push_back(sum);
  }
  EXPECT_EQ(fingerprints(c10::kCPU, all), alone);
  EXPECT_TRUE(fingerprints(c10::kCPU, {}).empty());
}

TEST(Fingerprints, ChangeWithOneByte) {
  std::vector<uint8_t> memory = numbered(2 * kStretch + 13);
  const Words words{memory.data(), static_cast<int64_t>(memory.size())};
  const std::vector<uint64_t> before = fingerprints(c10::kCPU, {words});
  for (size_t i = 0; i < memory.size(); i += i < 20 || i > memory.size() - 4096 ? 1 : 1009) {
    memory[i] ^= 0x80;
    EXPECT_NE(fingerprints(c10::kCPU, {words}), before) << i;
    memory[i] ^= 0x80;
  }
  EXPECT_EQ(fingerprints(c10::kCPU, {words}), before);
}

/// As a kernel does that takes absolute values in place: signs of floats are the top bits of their words.
TEST(Fingerprints, ChangeWithTheSameBitOfSeveralWords) {
  for (const int bit : {0, 15, 31, 47, 62, 63})
    for (const size_t words : {2, 3, 4, 128}) {
      std::vector<uint64_t> memory(3 * kStretch / 8);
      const Words all{memory.data(), static_cast<int64_t>(memory.size() * 8)};
      const std::vector<uint64_t> before = fingerprints(c10::kCPU, {all});
      for (size_t i = 0; i < words; ++i) memory[i * 67] ^= uint64_t{1} << bit;
      EXPECT_NE(fingerprints(c10::kCPU, {all}), before) << words << " words, bit " << bit;
    }
}

TEST(Fingerprints, ChangeWhereTwoWordsAreExchanged) {
  std::vector<uint64_t> memory{7, 7, 9, 7};
  const Words all{memory.data(), 32};
  const std::vector<uint64_t> before = fingerprints(c10::kCPU, {all});
  std::swap(memory[1], memory[2]);
  EXPECT_NE(fingerprints(c10::kCPU, {all}), before);
}

TEST(SameElements, OneThatDiffersIsSeenWhereverItLies) {
  for (const int64_t size : {1, 2, 4, 8})
    for (const int64_t bytes : kSizes) {
      const std::vector<uint8_t> a = numbered(bytes / size * size);
      std::vector<uint8_t> b = a;
      const ElementPair pair{a.data(), b.data(), bytes / size, size, false};
      EXPECT_EQ(same_elements(c10::kCPU, {pair}), std::vector<bool>{true}) << size << " " << bytes;
      if (a.empty()) continue;
      for (const size_t at : {size_t(0), a.size() / 2, a.size() - 1}) {
        b[at] ^= 1;
        EXPECT_EQ(same_elements(c10::kCPU, {pair, {a.data(), a.data(), bytes / size, size, false}, pair}),
                  (std::vector<bool>{false, true, false}))
            << size << " " << bytes << ", byte " << at;
        b[at] ^= 1;
      }
    }
}

TEST(SameElements, ZerosOfEitherSignAreTheSameWhereAsked) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const float a[] = {1, 0, kNan, -0.0f}, signs[] = {1, -0.0f, kNan, 0}, sign_of_nan[] = {1, 0, -kNan, -0.0f},
              sign_of_one[] = {-1, 0, kNan, -0.0f}, smallest[] = {1, 1e-45f, kNan, -0.0f};
  for (const bool zeros_are_same : {true, false}) {
    const auto with_a = [&](const float* b) { return ElementPair{a, b, 4, 4, zeros_are_same}; };
    EXPECT_EQ(same_elements(c10::kCPU, {with_a(a), with_a(signs), with_a(sign_of_nan), with_a(sign_of_one), with_a(smallest)}),
              (std::vector<bool>{true, zeros_are_same, false, false, false}));
  }
}

TEST(SameElements, OfAnotherSizeAreRefused) {
  const uint64_t two[2] = {};
  EXPECT_THROW(same_elements(c10::kCPU, {{two, two, 1, 16, false}}), std::invalid_argument);
}

}  // namespace
}  // namespace attnbench
