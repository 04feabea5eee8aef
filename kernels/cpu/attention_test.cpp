// flash_varlen on the CPU against attention in float64, written element by element.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/cpu/test_attention.hpp"

namespace attnbench::flash_varlen {
namespace {

/// A sum in float64 and the sum of the absolute values of its terms, which bounds the rounding errors of a float sum.
struct Sum {
  double value = 0, size = 0;
  void add(double term) {
    value += term;
    size += std::abs(term);
  }
};

using Sums = std::vector<Sum>;  // [token][head][x]

struct Expected {
  Sums o, dq, dk, dv;
  std::vector<double> lse;
};

bool sees(const Problem& p, int64_t lq, int64_t lk, int64_t i, int64_t j) {
  const int64_t diagonal = i + (p.bottom_right ? lk - lq : 0);
  return (p.left < 0 || j >= diagonal - p.left) && (p.right < 0 || j <= diagonal + p.right);
}

/// One row of attention: query token i of head h against the keys of its sequence. Gradients take the kernel's own O.
void expected_row(const Attention& a, int64_t sequence, int64_t i, int64_t h, Expected& expected) {
  const Problem& p = a.p;
  const int64_t lk = p.lk[sequence], kv = h / (p.hq / p.hkv), d = p.d;
  const int64_t token = a.cu_q[sequence] + i, first_key = a.cu_k[sequence];
  std::vector<double> S(lk, -std::numeric_limits<double>::infinity());
  double m = -std::numeric_limits<double>::infinity(), l = 0;
  for (int64_t j = 0; j < lk; ++j) {
    if (!sees(p, p.lq[sequence], lk, i, j)) continue;
    S[j] = 0;
    for (int64_t x = 0; x < d; ++x) S[j] += a.q.get(token, h, x) * a.k.get(first_key + j, kv, x);
    S[j] *= a.scale();
    m = std::max(m, S[j]);
  }
  for (int64_t j = 0; j < lk; ++j) l += std::isinf(S[j]) ? 0 : std::exp(S[j] - m);
  expected.lse[token * p.hq + h] = l > 0 ? m + std::log(l) : -std::numeric_limits<double>::infinity();
  Sum D;
  for (int64_t x = 0; x < d; ++x) D.add(a.o.get(token, h, x) * a.dout.get(token, h, x));
  for (int64_t j = 0; j < lk; ++j) {
    if (std::isinf(S[j])) continue;
    const double P = std::exp(S[j] - m) / l;
    Sum dP;
    for (int64_t x = 0; x < d; ++x) dP.add(a.dout.get(token, h, x) * a.v.get(first_key + j, kv, x));
    const double dS = P * (dP.value - D.value) * a.scale(), dS_size = P * (dP.size + D.size) * a.scale();
    for (int64_t x = 0; x < d; ++x) {
      const int64_t at_q = (token * p.hq + h) * d + x, at_k = ((first_key + j) * p.hkv + kv) * d + x;
      const double q = a.q.get(token, h, x), k = a.k.get(first_key + j, kv, x);
      expected.o[at_q].add(P * a.v.get(first_key + j, kv, x));
      expected.dv[at_k].add(P * a.dout.get(token, h, x));
      expected.dq[at_q].value += dS * k;
      expected.dq[at_q].size += dS_size * std::abs(k);
      expected.dk[at_k].value += dS * q;
      expected.dk[at_k].size += dS_size * std::abs(q);
    }
  }
}

Expected expected_of(const Attention& a) {
  const Problem& p = a.p;
  Expected expected;
  expected.o = expected.dq = Sums(a.cu_q.back() * p.hq * p.d);
  expected.dk = expected.dv = Sums(a.cu_k.back() * p.hkv * p.d);
  expected.lse.resize(a.cu_q.back() * p.hq);
  for (size_t sequence = 0; sequence < p.lq.size(); ++sequence) {
    for (int64_t i = 0; i < p.lq[sequence]; ++i) {
      for (int64_t h = 0; h < p.hq; ++h) expected_row(a, sequence, i, h, expected);
    }
  }
  return expected;
}

/// Half an ulp of the output's type, and 256 roundings of fp32 (scores up to 10, sums over d and keys) of the terms.
void expect_close(const char* name, const Buffer& got, const Sums& expected, Type type) {
  const double relative = type == Type::bf16 ? 0x1p-8 : type == Type::fp16 ? 0x1p-11 : 0x1p-24;
  const double smallest = type == Type::fp16 ? 0x1p-25 : 0;
  size_t at = 0;
  int bad = 0;
  got.for_each([&](int64_t token, int64_t head, int64_t x) {
    const Sum& sum = expected[at++];
    const double error = std::abs(got.get(token, head, x) - sum.value);
    const double limit = relative * std::abs(sum.value) * 1.01 + smallest + 256 * 0x1p-24 * sum.size;
    if (!(error <= limit) && ++bad <= 3) {
      ADD_FAILURE() << name << " of token " << token << ", head " << head << ", channel " << x << ": expected " << sum.value
                    << " within " << limit << ", got " << got.get(token, head, x);
    }
  });
  EXPECT_EQ(bad, 0) << name;
}

void check(const Problem& p, int workers = 2) {
  SCOPED_TRACE(describe(p));
  Attention a(p);
  a.forward(workers);
  a.backward(workers);
  const Expected expected = expected_of(a);
  for (size_t i = 0; i < a.lse.size(); ++i) {
    const bool finite = std::isfinite(expected.lse[i]);  // a limit of infinity would let everything pass for -inf
    const double limit = finite ? 64 * 0x1p-24 * (4 + std::abs(expected.lse[i])) : 0;
    ASSERT_TRUE(a.lse[i] == expected.lse[i] || std::abs(a.lse[i] - expected.lse[i]) <= limit)
        << "lse " << i << ": expected " << expected.lse[i] << ", got " << a.lse[i];
  }
  expect_close("o", a.o, expected.o, p.type);
  expect_close("dq", a.dq, expected.dq, p.type);
  expect_close("dk", a.dk, expected.dk, p.type);
  expect_close("dv", a.dv, expected.dv, p.type);
}

const std::vector<int> kLengths = {0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 385};

TEST(FlashVarlenCpu, lengths_around_tiles_causal_and_not) {
  std::vector<int> reversed(kLengths.rbegin(), kLengths.rend());
  for (const int64_t right : {-1, 0}) {
    for (const bool bottom_right : {true, false}) {
      check({.lq = kLengths, .lk = kLengths, .hq = 1, .d = 16, .right = right, .bottom_right = bottom_right});
      check({.lq = kLengths, .lk = reversed, .hq = 1, .d = 16, .right = right, .bottom_right = bottom_right});
    }
  }
}

TEST(FlashVarlenCpu, head_dims) {
  for (const int64_t d : {1, 3, 8, 16, 33, 40, 64, 80, 96, 128, 192, 255, 256}) {
    check({.lq = {67, 5}, .lk = {131, 20}, .hq = 1, .d = d, .right = 0});
  }
}

TEST(FlashVarlenCpu, types_groups_and_strides) {
  for (const Type type : {Type::bf16, Type::fp16, Type::fp32}) {
    for (const auto& [hq, hkv] : {std::pair{3, 3}, {6, 2}, {4, 1}}) {
      for (const int64_t gap : {0, 5}) {
        check({.lq = {40, 130, 0, 9},
               .lk = {33, 140, 7, 0},
               .hq = hq,
               .hkv = hkv,
               .d = 24,
               .type = type,
               .right = 0,
               .gap = gap,
               .odd = gap != 0});
      }
    }
  }
}

TEST(FlashVarlenCpu, windows) {
  for (const bool bottom_right : {true, false}) {
    for (const auto& [left, right] : {std::pair{0, 0}, {5, -1}, {-1, 5}, {40, 0}, {3, 70}, {1000, 1000}}) {
      check({.lq = {200, 150, 90},
             .lk = {200, 90, 150},
             .hq = 1,
             .d = 8,
             .left = left,
             .right = right,
             .bottom_right = bottom_right});
    }
  }
}

/// Beyond query 130 nobody sees the keys: for whole tiles of keys the range of queries is empty, and does not begin at a block.
TEST(FlashVarlenCpu, tiles_of_keys_that_no_query_sees) {
  check({.lq = {130}, .lk = {384}, .hq = 1, .d = 8, .right = 3, .bottom_right = false});
}

/// The last block of keys is one key, which the first of a group of lanes see and the others not: their LSE had it all the same.
TEST(FlashVarlenCpu, a_last_key_that_a_window_hides_from_part_of_a_lane_group) {
  for (const int64_t keys : {1, 65, 129})
    check({.lq = {int(keys) + 40}, .lk = {int(keys)}, .hq = 1, .d = 8, .left = 12, .right = 16, .bottom_right = false});
}

TEST(FlashVarlenCpu, peaked_and_negative_scores) {
  check({.lq = {70}, .lk = {300}, .hq = 1, .d = 16, .right = 0, .spread = 8});
  Attention a({.lq = {65}, .lk = {193}, .hq = 1, .d = 16});
  a.q.for_each([&](int64_t token, int64_t head, int64_t x) { a.q.set(token, head, x, 7); });
  a.k.for_each([&](int64_t token, int64_t head, int64_t x) { a.k.set(token, head, x, -8 - float(token) / 64); });
  a.forward(2);
  const Expected expected = expected_of(a);
  for (size_t i = 0; i < a.lse.size(); ++i) ASSERT_NEAR(a.lse[i], expected.lse[i], 1e-4) << "lse is about -219";
  for (int64_t x = 0; x < 16; ++x) EXPECT_NEAR(a.o.get(64, 0, x), expected.o[64 * 16 + x].value, 1e-4);
}

TEST(FlashVarlenCpu, rows_and_keys_without_partners_give_zeros) {
  Attention a({.lq = {130, 0, 4}, .lk = {20, 6, 0}, .hq = 2, .d = 8, .right = 0});
  a.forward(2);
  a.backward(2);
  for (int64_t token : {0, 109, 130, 133}) {
    for (int64_t x = 0; x < 8; ++x) {
      EXPECT_EQ(a.o.get(token, 1, x), 0) << token;
      EXPECT_EQ(a.dq.get(token, 1, x), 0) << token;
    }
    EXPECT_EQ(a.lse[token * 2 + 1], -std::numeric_limits<float>::infinity()) << token;
  }
  for (int64_t token : {20, 25}) {
    for (int64_t x = 0; x < 8; ++x) {
      EXPECT_EQ(a.dk.get(token, 0, x), 0) << token;
      EXPECT_EQ(a.dv.get(token, 0, x), 0) << token;
    }
  }
}

TEST(FlashVarlenCpu, a_mix_of_one_long_and_many_short_sequences) {
  std::vector<int> lengths = {1500};
  for (int i = 0; i < 60; ++i) lengths.push_back(1 + i % 23);
  check({.lq = lengths, .lk = lengths, .hq = 1, .d = 8, .right = 0}, 3);
}

TEST(FlashVarlenCpu, nothing_to_do) {
  check({.lq = {}, .lk = {}});
  check({.lq = {0, 0}, .lk = {0, 3}});
}

}  // namespace
}  // namespace attnbench::flash_varlen
