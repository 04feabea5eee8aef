// What flash_varlen on the CPU promises besides right values: bits that do not depend on workers, nothing read that no query
// sees, sentences for what it refuses.
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include "kernels/cpu/test_attention.hpp"

namespace attnbench::flash_varlen {
namespace {

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

}  // namespace
}  // namespace attnbench::flash_varlen
