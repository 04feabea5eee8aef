// Profiles, conventions and comparisons that the tests of the judge share.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include "harness/attention/kept.hpp"
#include "harness/attention/reference.hpp"

namespace attnbench::judge_test {

/// All numbers of a float64 tensor, in order.
inline std::vector<double> numbers(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  const at::Tensor host = tensor.to(at::kCPU).contiguous();
  return {host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel()};
}

inline Profile flash() {
  return {"flash", Profile::Probabilities::unnormalised, true, false, Profile::RowSum::from_output, true};
}
/// fp32 inside, D from the rounded O.
inline Profile inside_from_output() {
  return {"fp32_inside_d_from_o", Profile::Probabilities::not_rounded, false, false, Profile::RowSum::from_output, false};
}
/// fp32 inside, D from P o dP.
inline Profile inside() {
  return {"fp32_inside", Profile::Probabilities::not_rounded, false, false, Profile::RowSum::from_p_dp, false};
}
inline Profile eager() {
  return {"eager", Profile::Probabilities::normalised, true, true, Profile::RowSum::from_p_dp, true};
}
/// As flash, but s dS is stored.
inline Profile scaled_ds() {
  Profile profile = flash();
  profile.name = "flash_scaled_ds";
  profile.scales_ds = true;
  return profile;
}
/// And dS is computed from the P that was rounded for P^T dO.
inline Profile efficient() {
  Profile profile = scaled_ds();
  profile.name = "efficient";
  profile.ds_from_rounded_p = true;
  return profile;
}
/// As flash, but D from P o dP.
inline Profile online_from_p_dp() {
  Profile profile = flash();
  profile.name = "online_d_from_p_dp";
  profile.d = Profile::RowSum::from_p_dp;
  return profile;
}
inline std::vector<Profile> profiles() {
  return {flash(), inside_from_output(), inside(), eager(), scaled_ds(), efficient(), online_from_p_dp()};
}

/// As the backends of the profile declare them: eager fills empty rows with the mean of V and returns no LSE.
inline Conventions conventions_of(const Profile& profile) {
  Conventions c;
  if (!profile.rounds_scores) return c;
  c.empty_row = Conventions::EmptyRow::uniform;
  c.lse_empty = Conventions::LseEmpty::none;
  c.poison = Conventions::Poison::finite;
  c.padded_rows_zero = false;
  return c;
}

/// Shapes around tile edges, masks, layouts, empty sequences and rows, GQA, windows.
inline std::vector<std::string> shapes() {
  return {
      "attention hq=2 hkv=2 lq=1 lk=1 d=32",
      "attention b=2 hq=2 hkv=1 lq=65 lk=63 d=64",
      "attention hq=6 hkv=2 lq=129 lk=129 d=64 mask=causal",
      "attention hq=2 hkv=1 lq=100 lk=60 d=64 mask=causal",
      "attention hq=2 hkv=1 lq=60 lk=100 d=64 mask=causal align=top_left",
      "attention hq=4 hkv=1 lens=17+64+0+129 d=64 mask=causal layout=padded pad=left",
      "attention hq=2 hkv=2 lens=17+64+0+9 klens=30+0+20+70 d=64 layout=padded pad=holes",
      "attention hq=2 hkv=1 lens=33+5 klens=20+41 d=128 mask=causal layout=padded",
      "attention hq=2 hkv=1 lq=150 d=32 window=20:3",
  };
}

/// Softcap, ALiBi and sinks, alone and together.
inline std::vector<std::string> option_shapes() {
  return {
      "attention hq=4 hkv=2 lq=33 lk=40 d=32 softcap=2",
      "attention hq=2 hkv=2 lq=70 d=64 softcap=30 mask=causal",
      "attention hq=6 hkv=2 lq=33 lk=40 d=32 alibi=on",
      "attention hq=2 hkv=1 lens=40+17 klens=33+80 d=32 alibi=on mask=causal",
      "attention hq=4 hkv=2 lq=33 lk=70 d=32 sink=on",
      "attention hq=6 hkv=3 lens=17+30 klens=40+20 d=32 softcap=3 alibi=on align=top_left sink=on mask=causal layout=padded",
  };
}

/// Dropout, alone and with what else changes P; with rows that see no key, keys that are stored beside the real ones, and heads
/// that share a key head. No mean over the keys that an empty row keeps is a power of two: the two oracles would round it to
/// either side, where ulp differs.
inline std::vector<std::string> dropout_shapes() {
  return {
      "attention hq=4 hkv=2 lq=33 lk=40 d=32 dropout=0.5:1",
      "attention hq=2 hkv=2 lq=129 lk=129 d=64 mask=causal dropout=0.1:7",
      "attention hq=2 hkv=1 lq=100 lk=57 d=64 mask=causal dropout=0.9:3",
      "attention hq=6 hkv=2 lens=17+30+0 klens=40+20+9 d=32 mask=causal layout=padded pad=holes dropout=0.3:9",
      "attention hq=2 hkv=1 lens=40+17 klens=33+80 d=32 dv=16 window=9:4 layout=padded pad=left dropout=0.5:2",
      "attention hq=4 hkv=2 lens=40+17 klens=33+80 d=32 softcap=3 alibi=on sink=on mask=causal dropout=0.2:5",
  };
}

/// Some mask for a case with dropout: what a correct kernel may have kept.
inline at::Tensor draw_kept(const Problem& problem, const Inputs& inputs, uint64_t seed) {
  const at::Tensor kept = at::empty(sizes_of_kept(inputs), at::kBool);
  std::mt19937_64 bits(seed);
  std::bernoulli_distribution is_kept(1 - problem.dropout.p);
  std::generate_n(kept.mutable_data_ptr<bool>(), kept.numel(), [&] { return is_kept(bits); });
  return kept;
}

/// Inputs with the mask that is to be replayed.
inline Inputs make_inputs_and_mask(const Case& c, Conventions::Poison poison) {
  Inputs inputs = make_inputs(c, poison);
  if (c.problem.dropout.p > 0) inputs.kept = draw_kept(c.problem, inputs, c.problem.dropout.seed);
  return inputs;
}

/// Largest difference relative to the value, or to a billionth of the tensor's largest value where that is more.
inline double largest_relative_difference(const at::Tensor& one, const at::Tensor& other) {
  const std::vector<double> a = numbers(one), b = numbers(other);
  if (a.size() != b.size()) return INFINITY;
  double largest = 0, worst = 0;
  for (const double x : a)
    if (std::isfinite(x)) largest = std::max(largest, std::abs(x));
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
    const double difference = std::abs(a[i] - b[i]) / std::max(std::abs(a[i]), 1e-9 * largest);
    worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
  }
  return worst;
}

/// Values that cancel to about 0 have no relative accuracy: they are compared with what a kernel may be off.
inline double largest_difference_in_sigmas(const Expected& one, const Expected& other) {
  const std::vector<double> a = numbers(one.value), b = numbers(other.value), variance = numbers(one.variance);
  if (a.size() != b.size()) return INFINITY;
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) continue;
    const double difference = std::abs(a[i] - b[i]) / std::sqrt(variance[i]);
    worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
  }
  return worst;
}

inline void expect_same(const Expected& a, const Expected& b, const std::string& what) {
  EXPECT_LE(largest_difference_in_sigmas(a, b), 1e-4) << what;
  EXPECT_LE(largest_relative_difference(a.variance, b.variance), 1e-9) << what << " variance";
  EXPECT_LE(largest_relative_difference(a.allowance, b.allowance), 1e-9) << what << " allowance";
  EXPECT_LE(largest_relative_difference(a.freedom, b.freedom), 1e-9) << what << " freedom";
}

inline void expect_same(const Reference& a, const Reference& b, const std::string& what) {
  expect_same(a.o, b.o, what + "o");
  expect_same(a.dq, b.dq, what + "dq");
  expect_same(a.dk, b.dk, what + "dk");
  expect_same(a.dv, b.dv, what + "dv");
  EXPECT_LE(largest_relative_difference(a.lse.value, b.lse.value), 1e-12) << what << "lse";
  EXPECT_LE(largest_relative_difference(a.lse.variance, b.lse.variance), 1e-9) << what << "lse variance";
  EXPECT_EQ(distinct_scores(a), distinct_scores(b)) << what;
}

}  // namespace attnbench::judge_test
