// A problem for flash_varlen on the CPU with its tensors, between guards, as its tests call it.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/cpu/convert.hpp"
#include "kernels/flash_varlen.hpp"

namespace attnbench::flash_varlen {

inline void run_threads(int workers, const std::function<void(int)>& body) {
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

inline std::string describe(const Problem& p) {
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

inline std::vector<int32_t> prefix_sums(const std::vector<int>& lengths) {
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

}  // namespace attnbench::flash_varlen
