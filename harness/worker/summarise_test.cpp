#include "harness/worker/summarise.hpp"

#include <cmath>

#include <gtest/gtest.h>

#include "harness/worker/gpu_monitor.hpp"

namespace attnbench {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

Series series_of(const std::vector<std::vector<double>>& rounds_us) {
  Series series;
  for (const auto& round : rounds_us) {
    series.rounds.emplace_back();
    for (const double us : round) series.rounds.back().push_back({.us = us, .sm_mhz = kUnknown, .held = true});
  }
  return series;
}

TEST(Summarise, TheRoundIsTheUnitOfTheMedian) {
  // Samples: median 10; rounds: 10, 20, 30.
  const WindowTime time = summarise(series_of({{10, 10, 10, 10}, {20}, {30}}), 0.5, false);
  EXPECT_EQ(time.median_us, 20);
  EXPECT_EQ(time.ci95_us, (std::array<double, 2>{10, 30}));
  EXPECT_EQ(time.n, 6);
  EXPECT_TRUE(time.converged) << "half of 20 is 0.5 of 20";
  EXPECT_FALSE(summarise(series_of({{10}, {20}, {30}}), 0.49, false).converged);
  EXPECT_FALSE(time.gpu);
}

TEST(Summarise, TimesArePerCall) {
  Series series = series_of({{100.00049}});
  series.calls_per_sample = 4;
  const WindowTime time = summarise(series, 0.1, false);
  EXPECT_EQ(time.median_us, 25);
  EXPECT_EQ(time.calls_per_sample, 4);
}

TEST(Summarise, ClocksOfSamplesThatHaveOne) {
  Series series = series_of({{1, 1}, {1}});
  series.rounds[0][0].sm_mhz = 1980.04;
  series.rounds[1][0].sm_mhz = 1700;
  series.rounds[1][0].held = false;
  const WindowTime time = summarise(series, 0.1, true);
  ASSERT_TRUE(time.gpu);
  EXPECT_EQ(time.gpu->sm_mhz, 1840);
  EXPECT_EQ(time.gpu->sm_mhz_rounds[0][0], 1980);
  EXPECT_TRUE(std::isnan(time.gpu->sm_mhz_rounds[0][1]));
  EXPECT_EQ(time.gpu->samples_without_hold, 1);
}

TEST(Summarise, WithoutReadingsNothingIsClaimed) {
  const WindowTime time = summarise(series_of({{1}}), 0.1, true);
  EXPECT_FALSE(time.gpu->sm_mhz);
  EXPECT_FALSE(time.gpu->power_w);
  EXPECT_FALSE(time.gpu->temperature_c);
  EXPECT_TRUE(time.gpu->throttle.empty());
}

TEST(Summarise, MedianPowerHighestTemperatureAndEveryReason) {
  Series series = series_of({{1}});
  series.readings.add({.power_w = {100, 700}, .temperature_c = {40}, .sm_mhz = {}, .throttle = {"sw_power_cap"}});
  series.readings.add({.power_w = {650}, .temperature_c = {61}, .sm_mhz = {}, .throttle = {"hw_slowdown"}, .slowed = true});
  const WindowTime time = summarise(series, 0.1, true);
  EXPECT_EQ(time.gpu->power_w, 650);
  EXPECT_EQ(time.gpu->temperature_c, 61);
  EXPECT_EQ(time.gpu->throttle, (std::vector<std::string>{"hw_slowdown", "sw_power_cap"}));
  EXPECT_TRUE(series.readings.slowed);
}

TEST(Throttle, APowerCapHasANameAndIsNoSlowdown) {
  EXPECT_EQ(throttle_names(0x4), (std::set<std::string>{"sw_power_cap"}));
  EXPECT_FALSE(is_slowdown(0x1 | 0x2 | 0x4 | 0x10 | 0x100));
  for (const uint64_t bit : {0x8, 0x20, 0x40, 0x80}) {
    EXPECT_TRUE(is_slowdown(bit));
    EXPECT_EQ(throttle_names(bit).size(), 1u);
  }
  EXPECT_TRUE(throttle_names(0x1).empty()) << "an idle GPU is not throttled";
}

TEST(Nvml, ADeviceThatIsNotThereIsUnsetAndIsNotWatched) {
  EXPECT_FALSE(NvmlDevice::open("nowhere"));
  EXPECT_TRUE(GpuMonitor("nowhere").take().power_w.empty());
}

}  // namespace
}  // namespace attnbench
