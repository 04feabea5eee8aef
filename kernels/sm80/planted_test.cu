// Every defect of the CUDA kernels is there: it changes a result of theirs on some setting, and none of them where it cannot
// show.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/sm80/test_comparison.cuh"

namespace attnbench::flash_varlen {
namespace {

/// Between them they show every defect: tails, several tiles, shared heads, more queries than keys and the other way round,
/// bands.
const std::vector<Setting> kSettings = {
    {{{200, 65, 130}, {200, 65, 130}}, 4, 2, 64, -1, 0, true}, {{{300, 70}, {421, 130}}, 4, 2, 64, -1, -1, true},
    {{{300, 70}, {421, 130}}, 2, 1, 128, -1, -1, true},        {{{130, 64}, {384, 70}}, 4, 2, 128, -1, 0, false},
    {{{331, 257}, {331, 257}}, 2, 1, 64, 48, 16, true},        {{{200, 100}, {300, 100}}, 2, 2, 64, -1, -1, true, 6}};

/// Largest relative L2 error of a result that is a sum in a fixed order, and of dQ, which is not.
struct Change {
  double ordered = 0, dq = 0;
};

/// NaN is a change like any other: infinite.
double change_of(const std::vector<float>& got, const std::vector<float>& expected) {
  bool equal = true;
  for (size_t i = 0; i < got.size(); i++) equal = equal && got[i] == expected[i];  // -inf of empty rows is equal to itself
  if (equal) return 0;
  std::vector<float> finite_got, finite_expected;
  for (size_t i = 0; i < got.size(); i++) {
    if (got[i] == expected[i]) continue;
    if (!std::isfinite(got[i]) || !std::isfinite(expected[i])) return std::numeric_limits<double>::infinity();
    finite_got.push_back(got[i]), finite_expected.push_back(expected[i]);
  }
  double error = 0, size = 0;
  for (size_t i = 0; i < finite_got.size(); i++) error += std::pow(double(finite_got[i]) - finite_expected[i], 2);
  for (const float x : expected)
    if (std::isfinite(x)) size += double(x) * x;
  return size > 0 ? std::sqrt(error / size) : std::numeric_limits<double>::infinity();
}

template <class T>
Change change(const Setting& setting, Defect defect) {
  const Comparison<T> comparison(setting);
  const Results sound = comparison.on_gpu(kSmallestSharedMemory);  // the tiles of the planted kernels
  const Results planted = comparison.on_gpu(kSmallestSharedMemory, defect);
  const double ordered = std::max({change_of(planted.o, sound.o), change_of(planted.lse, sound.lse),
                                   change_of(planted.dk, sound.dk), change_of(planted.dv, sound.dv)});
  return {ordered, change_of(planted.dq, sound.dq)};
}

/// Atomic operations add in any order: float32 sums that differ in their last bits, of which few are rounded to other 16-bit
/// numbers.
constexpr double kNoiseOfDq = 2e-4;

/// dO of these settings is contiguous, and what no query sees is finite: see below.
bool shows_elsewhere(Defect defect) {
  return defect == Defect::dout_strides_ignored || defect == Defect::hidden_keys_multiplied;
}

TEST(PlantedSm80, EveryDefectChangesAResult) {
  for (const DefectFacts& facts : defects()) {
    if (facts.only_on == std::string_view("cpu")) continue;
    if (shows_elsewhere(facts.defect)) continue;
    bool changed = false;
    for (const Setting& setting : kSettings) {
      for (const Change& seen : {change<sm80::Half>(setting, facts.defect), change<sm80::Bfloat>(setting, facts.defect)})
        changed = changed || seen.ordered > 0 || seen.dq > kNoiseOfDq;
      if (changed) break;
    }
    EXPECT_TRUE(changed) << facts.name << ": " << facts.what;
  }
}

/// What is asked on the way to a defect that is not there changes nothing.
TEST(PlantedSm80, ADefectThatCannotShowChangesNoResult) {
  const Setting no_mask = kSettings[1], causal = kSettings[0];
  for (const auto& [setting, defect] : {std::pair{no_mask, Defect::window_one_wider}, std::pair{no_mask, Defect::causal_one_late},
                                        std::pair{causal, Defect::window_one_narrower}, std::pair{causal, Defect::other_corner},
                                        std::pair{causal, Defect::dout_strides_ignored}}) {
    for (const Change& seen : {change<sm80::Half>(setting, defect), change<sm80::Bfloat>(setting, defect)}) {
      EXPECT_EQ(seen.ordered, 0) << static_cast<int>(defect);
      EXPECT_LE(seen.dq, kNoiseOfDq) << static_cast<int>(defect);
    }
  }
}

TEST(PlantedSm80, WhatNoQuerySeesLeaksWhereItIsMultiplied) {
  const Setting hidden{{{20}, {100}}, 2, 2, 64, -1, 0, false};  // top-left: keys 20 to 99 are seen by nobody
  const Comparison<sm80::Bfloat> comparison(hidden, std::numeric_limits<float>::quiet_NaN());
  for (const float o : comparison.on_gpu(kSmallestSharedMemory).o) ASSERT_TRUE(std::isfinite(o));
  bool leaked = false;
  for (const float o : comparison.on_gpu(kSmallestSharedMemory, Defect::hidden_keys_multiplied).o)
    leaked = leaked || std::isnan(o);
  EXPECT_TRUE(leaked);
}

}  // namespace
}  // namespace attnbench::flash_varlen
