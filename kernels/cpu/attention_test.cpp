// flash_varlen on the CPU against attention in float64, written element by element, and its promises: bits that do
// not depend on workers, nothing read or written outside the sequences, sentences for what it refuses.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/cpu/convert.hpp"
#include "kernels/flash_varlen.hpp"

namespace attnbench::flash_varlen {
namespace {

void run_threads(int workers, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int worker = 0; worker < workers; ++worker) threads.emplace_back(body, worker);
  for (auto& thread : threads) thread.join();
}

struct Problem {
  std::vector<int> lq, lk;
  int64_t hq = 2, hkv = 1, d = 64;
  Type type = Type::fp32;
  int64_t left = -1, right = -1;
  bool bottom_right = true;
  int64_t gap = 0;    ///< elements between heads
  bool odd = false;   ///< buffers begin at an address that is not a multiple of the element's size
  double spread = 1;  ///< standard deviation of q
};

std::string describe(const Problem& p) {
  std::ostringstream text;
  text << "lq";
  for (int length : p.lq) text << " " << length;
  text << " lk";
  for (int length : p.lk) text << " " << length;
  text << " hq " << p.hq << " hkv " << p.hkv << " d " << p.d << " type " << int(p.type) << " window " << p.left << ":" << p.right
       << (p.bottom_right ? " bottom_right" : " top_left") << " gap " << p.gap;
  return text.str();
}

/// Rows in a buffer whose other bytes are all 0xff (NaN in every type): a guard before and after, gaps between heads.
class Buffer {
 public:
  Buffer(const Problem& p, int64_t tokens, int64_t heads)
      : type_(p.type),
        tokens_(tokens),
        heads_(heads),
        d_(p.d),
        head_stride_(p.d + p.gap),
        token_stride_(heads * head_stride_ + p.gap),
        offset_(kGuard + (p.odd ? 1 : 0)),
        bytes_(2 * kGuard + 1 + tokens * token_stride_ * cpu::size_of(p.type), std::byte{0xff}) {}

  void set(int64_t token, int64_t head, int64_t x, float value) { cpu::from_fp32(type_, &value, 1, 1, at(token, head, x)); }
  double get(int64_t token, int64_t head, int64_t x) const {
    float value;
    cpu::to_fp32(type_, const_cast<Buffer*>(this)->at(token, head, x), 1, 1, &value);
    return value;
  }
  void fill(std::mt19937& random, double spread) {
    std::normal_distribution<float> normal(0, float(spread));
    for_each([&](int64_t token, int64_t head, int64_t x) { set(token, head, x, normal(random)); });
  }
  ConstRows rows() const { return {bytes_.data() + offset_, token_stride_, head_stride_}; }
  Rows rows() { return {bytes_.data() + offset_, token_stride_, head_stride_}; }
  const std::vector<std::byte>& bytes() const { return bytes_; }

  template <class Visit>
  void for_each(const Visit& visit) const {
    for (int64_t token = 0; token < tokens_; ++token) {
      for (int64_t head = 0; head < heads_; ++head) {
        for (int64_t x = 0; x < d_; ++x) visit(token, head, x);
      }
    }
  }

  /// Every byte outside the rows is as it was.
  void expect_untouched_outside() const {
    std::vector<bool> inside(bytes_.size());
    for_each([&](int64_t token, int64_t head, int64_t x) {
      const auto first = const_cast<Buffer*>(this)->at(token, head, x) - bytes_.data();
      for (int64_t i = 0; i < cpu::size_of(type_); ++i) inside[first + i] = true;
    });
    for (size_t i = 0; i < bytes_.size(); ++i) ASSERT_TRUE(inside[i] || bytes_[i] == std::byte{0xff}) << "byte " << i;
  }

 private:
  static constexpr int64_t kGuard = 256;
  std::byte* at(int64_t token, int64_t head, int64_t x) {
    return bytes_.data() + offset_ + (token * token_stride_ + head * head_stride_ + x) * cpu::size_of(type_);
  }
  Type type_;
  int64_t tokens_, heads_, d_, head_stride_, token_stride_, offset_;
  std::vector<std::byte> bytes_;
};

/// A workspace filled with NaN between two guards.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : bytes_(bytes), memory_(bytes + 3 * kGuard, std::byte{0xff}) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data()) + kGuard;
    begin_ = kGuard + (64 - address % 64) % 64;
  }
  void* data() { return memory_.data() + begin_; }
  void expect_untouched_outside() const {
    for (size_t i = 0; i < memory_.size(); ++i) {
      if (i < begin_ || i >= begin_ + bytes_) {
        ASSERT_EQ(memory_[i], std::byte{0xff}) << "workspace of " << bytes_ << " bytes, " << int64_t(i - begin_);
      }
    }
  }

 private:
  static constexpr size_t kGuard = 256;
  size_t bytes_, begin_ = 0;
  std::vector<std::byte> memory_;
};

std::vector<int32_t> prefix_sums(const std::vector<int>& lengths) {
  std::vector<int32_t> sums = {0};
  for (const int length : lengths) sums.push_back(sums.back() + length);
  return sums;
}

/// A problem with its tensors; forward and backward as a user calls them.
struct Attention {
  Problem p;
  std::vector<int32_t> cu_q, cu_k;
  Buffer q, k, v, dout, o, dq, dk, dv;
  std::vector<float> lse;

  explicit Attention(const Problem& problem)
      : p(problem),
        cu_q(prefix_sums(p.lq)),
        cu_k(prefix_sums(p.lk)),
        q(p, cu_q.back(), p.hq),
        k(p, cu_k.back(), p.hkv),
        v(k),
        dout(q),
        o(q),
        dq(q),
        dk(k),
        dv(k),
        lse(cu_q.back() * p.hq, std::numeric_limits<float>::quiet_NaN()) {
    std::mt19937 random(7);
    q.fill(random, p.spread);
    k.fill(random, 1);
    v.fill(random, 1);
    dout.fill(random, 1);
  }
  Shape shape() const {
    return {int64_t(p.lq.size()), p.hq, p.hkv, p.d, cu_q.data(), cu_k.data(), p.left, p.right, p.bottom_right, scale(), p.type};
  }
  float scale() const { return float(1 / std::sqrt(double(p.d))); }

  void forward(int workers) {
    Workspace workspace(forward_cpu_workspace_bytes(shape(), workers));
    const auto& in = std::as_const(*this);
    forward_cpu({shape(), in.q.rows(), in.k.rows(), in.v.rows(), o.rows(), lse.data()}, workspace.data(), workers, run_threads);
    workspace.expect_untouched_outside();
    o.expect_untouched_outside();
  }
  void backward(int workers) {
    Workspace workspace(backward_cpu_workspace_bytes(shape(), workers));
    const auto& in = std::as_const(*this);
    backward_cpu({shape(), in.q.rows(), in.k.rows(), in.v.rows(), in.o.rows(), in.dout.rows(), lse.data(), dq.rows(), dk.rows(),
                  dv.rows()},
                 workspace.data(), workers, run_threads);
    workspace.expect_untouched_outside();
    dq.expect_untouched_outside();
    dk.expect_untouched_outside();
    dv.expect_untouched_outside();
  }
};

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
    const double limit = 64 * 0x1p-24 * (4 + std::abs(expected.lse[i]));
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

TEST(FlashVarlenCpu, the_number_of_workers_does_not_change_a_bit) {
  for (const Type type : {Type::bf16, Type::fp32}) {
    const Problem p = {
        .lq = {700, 31, 0, 64, 129, 1}, .lk = {650, 31, 8, 300, 129, 2}, .hq = 4, .hkv = 2, .d = 40, .type = type, .right = 0};
    Attention one(p);
    one.forward(1);
    one.backward(1);
    for (const int workers : {2, 3, 5, 8}) {
      Attention many(p);
      many.forward(workers);
      many.backward(workers);
      EXPECT_EQ(many.o.bytes(), one.o.bytes()) << workers;
      EXPECT_EQ(std::memcmp(many.lse.data(), one.lse.data(), one.lse.size() * sizeof(float)), 0) << workers;
      EXPECT_EQ(many.dq.bytes(), one.dq.bytes()) << workers;
      EXPECT_EQ(many.dk.bytes(), one.dk.bytes()) << workers;
      EXPECT_EQ(many.dv.bytes(), one.dv.bytes()) << workers;
    }
  }
}

/// Runs a problem, then again with NaN in every row for which poisoned(token) holds, of k and v, or of q and dout too.
/// The rows of the outputs that are not poisoned must not change by a bit.
void check_poison(const Problem& p, bool (*q_poisoned)(int64_t), bool (*k_poisoned)(int64_t)) {
  SCOPED_TRACE(describe(p));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Attention clean(p), dirty(p);
  dirty.q.for_each([&](int64_t token, int64_t head, int64_t x) {
    if (!q_poisoned(token)) return;
    dirty.q.set(token, head, x, nan);
    dirty.dout.set(token, head, x, nan);
  });
  dirty.k.for_each([&](int64_t token, int64_t head, int64_t x) {
    if (!k_poisoned(token)) return;
    dirty.k.set(token, head, x, nan);
    dirty.v.set(token, head, x, nan);
  });
  for (Attention* a : {&clean, &dirty}) {
    a->forward(2);
    a->backward(2);
  }
  const auto expect_equal = [](const char* name, const Buffer& a, const Buffer& b, bool (*skip)(int64_t)) {
    a.for_each([&](int64_t token, int64_t head, int64_t x) {
      if (skip(token)) return;
      ASSERT_EQ(a.get(token, head, x), b.get(token, head, x)) << name << " of token " << token;
    });
  };
  expect_equal("o", clean.o, dirty.o, q_poisoned);
  expect_equal("dq", clean.dq, dirty.dq, q_poisoned);
  expect_equal("dk", clean.dk, dirty.dk, k_poisoned);
  expect_equal("dv", clean.dv, dirty.dv, k_poisoned);
}

TEST(FlashVarlenCpu, nan_in_the_sequence_beside_does_not_leak) {
  const auto in_the_middle_q = [](int64_t token) { return token >= 33 && token < 103; };
  const auto in_the_middle_k = [](int64_t token) { return token >= 45 && token < 126; };
  for (const int64_t right : {-1, 0}) {
    check_poison({.lq = {33, 70, 40}, .lk = {45, 81, 17}, .hq = 2, .d = 24, .right = right}, in_the_middle_q, in_the_middle_k);
  }
}

TEST(FlashVarlenCpu, nan_in_keys_that_no_query_sees_does_not_leak) {
  const auto none = [](int64_t) { return false; };
  check_poison({.lq = {70}, .lk = {301}, .hq = 2, .d = 24, .right = 0, .bottom_right = false}, none,
               [](int64_t token) { return token >= 70; });
  check_poison({.lq = {70}, .lk = {301}, .hq = 2, .d = 24, .left = 9, .right = 0}, none,
               [](int64_t token) { return token < 222; });
}

TEST(FlashVarlenCpu, nan_that_is_seen_comes_out_as_nan) {
  Attention a({.lq = {20}, .lk = {20}, .hq = 1, .d = 8, .right = 0});
  a.k.set(19, 0, 3, std::numeric_limits<float>::quiet_NaN());
  a.forward(1);
  EXPECT_TRUE(std::isnan(a.lse[19]));
  EXPECT_TRUE(std::isnan(a.o.get(19, 0, 0)));
  EXPECT_FALSE(std::isnan(a.lse[18]));
}

TEST(FlashVarlenCpu, a_mix_of_one_long_and_many_short_sequences) {
  std::vector<int> lengths = {1500};
  for (int i = 0; i < 60; ++i) lengths.push_back(1 + i % 23);
  check({.lq = lengths, .lk = lengths, .hq = 1, .d = 8, .right = 0}, 3);
}

/// The sentence with which `change` to a good problem is refused by all four functions.
template <class Change>
std::string refusal(const Change& change, int workers = 1) {
  Attention a({.lq = {4}, .lk = {4}, .hq = 2, .d = 8});
  Shape shape = a.shape();
  change(shape);
  alignas(64) std::byte workspace[64];
  std::string sentence;
  const auto expect_refused = [&](const auto& call) {
    try {
      call();
      ADD_FAILURE() << "taken";
    } catch (const std::invalid_argument& error) {
      sentence = error.what();
    }
  };
  expect_refused([&] { forward_cpu_workspace_bytes(shape, workers); });
  expect_refused([&] { backward_cpu_workspace_bytes(shape, workers); });
  expect_refused([&] { forward_cpu({shape, {}, {}, {}, {}, nullptr}, workspace, workers, run_threads); });
  expect_refused([&] { backward_cpu({shape, {}, {}, {}, {}, {}, nullptr, {}, {}, {}}, workspace, workers, run_threads); });
  return sentence;
}

TEST(FlashVarlenCpu, what_it_does_not_take_is_refused_with_a_sentence) {
  static const int32_t falling[] = {0, -1}, late[] = {3, 4};
  EXPECT_EQ(refusal([](Shape& s) { s.d = 0; }), "flash_varlen (CPU) takes a head dim d in [1, 256], but got 0");
  EXPECT_EQ(refusal([](Shape& s) { s.d = 257; }), "flash_varlen (CPU) takes a head dim d in [1, 256], but got 257");
  EXPECT_EQ(refusal([](Shape& s) { s.hq = 3, s.hkv = 2; }),
            "flash_varlen (CPU) takes hkv >= 1 that divides hq >= 1, but got hq = 3, hkv = 2");
  EXPECT_NE(refusal([](Shape& s) { s.hkv = 0; }).find("hkv = 0"), std::string::npos);
  EXPECT_NE(refusal([](Shape& s) { s.sequences = -1; }).find("0 sequences or more"), std::string::npos);
  EXPECT_NE(refusal([](Shape& s) { s.scale = NAN; }).find("finite scale"), std::string::npos);
  EXPECT_NE(refusal([](Shape& s) { s.type = Type(9); }).find("type 9"), std::string::npos);
  EXPECT_NE(refusal([](Shape& s) { s.cu_q = nullptr; }).find("cu_q"), std::string::npos);
  EXPECT_NE(refusal([](Shape& s) { s.cu_k = falling; }).find("-1 after 0 at sequence 0"), std::string::npos);
  EXPECT_NE(refusal([](Shape& s) { s.cu_q = late; }).find("begins with 0"), std::string::npos);
  EXPECT_NE(refusal([](Shape&) {}, 0).find("one worker or more"), std::string::npos);
}

TEST(FlashVarlenCpu, an_unaligned_workspace_is_refused) {
  Attention a({.lq = {4}, .lk = {4}, .hq = 2, .d = 8});
  alignas(64) std::byte workspace[128];
  EXPECT_THROW(forward_cpu({a.shape(), {}, {}, {}, {}, nullptr}, workspace + 4, 1, run_threads), std::invalid_argument);
  EXPECT_THROW(backward_cpu({a.shape(), {}, {}, {}, {}, {}, nullptr, {}, {}, {}}, workspace + 4, 1, run_threads),
               std::invalid_argument);
}

TEST(FlashVarlenCpu, nothing_to_do) {
  check({.lq = {}, .lk = {}});
  check({.lq = {0, 0}, .lk = {0, 3}});
}

}  // namespace
}  // namespace attnbench::flash_varlen
