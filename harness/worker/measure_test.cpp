#include "harness/worker/measure.hpp"

#include <algorithm>
#include <chrono>
#include <optional>
#include <stdexcept>
#include <thread>

#include <gtest/gtest.h>

#include "harness/run/test_device.hpp"

namespace attnbench {
namespace {

void spin_us(double us) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double, std::micro>(us);
  while (std::chrono::steady_clock::now() < end) {
  }
}

Operation operation(const std::string& id, std::function<void()> call) {
  return {id, std::move(call), [] {}};
}

MeasureOptions quick() {
  MeasureOptions options;
  options.time_budget_s = 0.2;
  return options;
}

MeasureOptions without_budget() {
  MeasureOptions options;
  options.time_budget_s = 0;
  return options;
}

/// The only time of something measured on a CPU.
WindowTime time_of(const Measured& measured) {
  EXPECT_EQ(measured.error, "");
  EXPECT_EQ(measured.times.size(), 1u);
  return measured.times.empty() ? WindowTime{} : measured.times.front().second;
}

TEST(Measure, TimesArePerCallAlsoWhereCallsAreBatched) {
  int calls = 0;
  const std::vector<Operation> operations = {operation("short", [&] { ++calls, spin_us(20); }),
                                             operation("long", [] { spin_us(600); })};
  const std::vector<Measured> measured = measure(operations, quick(), kCpu);
  ASSERT_EQ(measured.size(), 2u);
  const WindowTime shorter = time_of(measured[0]), longer = time_of(measured[1]);
  EXPECT_EQ(measured[0].times.front().first, "cpu_hot");
  EXPECT_GE(shorter.median_us, 20);
  EXPECT_LT(shorter.median_us, 200);
  EXPECT_GE(shorter.calls_per_sample, 2);
  EXPECT_GE(longer.median_us, 600);
  EXPECT_EQ(longer.calls_per_sample, 1);
  EXPECT_GE(calls, 5 * shorter.n) << "a sample lasts at least 200 us";
  EXPECT_FALSE(longer.gpu) << "a CPU has no such conditions";
}

TEST(Measure, KeepsTheSamplesOfEveryRound) {
  MeasureOptions options = without_budget();
  options.min_rounds = 12;
  const WindowTime time = time_of(measure({operation("a", [] { spin_us(300); })}, options, kCpu)[0]);
  ASSERT_EQ(time.rounds.size(), 12u) << "min_rounds are done though the budget is spent";
  EXPECT_EQ(time.n, 12) << "one sample a round where there is no time for more";
  EXPECT_LE(time.ci95_us[0], time.median_us);
  EXPECT_GE(time.ci95_us[1], time.median_us);
  EXPECT_LE(time.p5_us, time.p95_us);
}

TEST(Measure, SteadyOperationsStopEarlyAndUnsteadyOnesAreUnconverged) {
  int call = 0;
  MeasureOptions hasty = quick();
  hasty.time_budget_s = 0.01;
  const auto unsteady = measure({operation("unsteady", [&] { ++call, spin_us(300 + 100 * (call * call % 7)); })}, hasty, kCpu);
  EXPECT_FALSE(time_of(unsteady[0]).converged);

  MeasureOptions patient = quick();
  patient.time_budget_s = 30;
  patient.target_half_width = 0.5;
  const WindowTime steady = time_of(measure({operation("steady", [] { spin_us(300); })}, patient, kCpu)[0]);
  EXPECT_TRUE(steady.converged);
  EXPECT_EQ(steady.rounds.size(), 10u);
}

TEST(Measure, OrderIsDrawnFromItsSeedAndChanges) {
  const auto orders = [](uint64_t seed) {
    std::string sequence;
    std::vector<Operation> operations;
    for (char name : {'a', 'b', 'c'})
      operations.push_back({std::string(1, name), [] { spin_us(250); }, [&sequence, name] { sequence += name; }});
    MeasureOptions options = without_budget();
    options.order_seed = seed;
    measure(operations, options, kCpu);
    return sequence;
  };
  const std::string first = orders(1);
  EXPECT_EQ(first, orders(1));
  EXPECT_NE(first, orders(2));
  EXPECT_EQ(first.size(), 3u + 30u) << "announced before it is calibrated and in each of ten rounds";
}

TEST(Measure, AnOperationThatThrowsHasNoTimeAndTheOthersHave) {
  int calls = 0;
  const std::vector<Operation> operations = {operation("at once", [] { throw std::runtime_error("no kernel image"); }),
                                             operation("later",
                                                       [&] {
                                                         if (++calls > 5) throw std::runtime_error("worn out");
                                                         spin_us(300);
                                                       }),
                                             operation("fine", [] { spin_us(300); })};
  const std::vector<Measured> measured = measure(operations, quick(), kCpu);
  EXPECT_EQ(measured[0].error, "no kernel image");
  EXPECT_EQ(measured[1].error, "worn out");
  EXPECT_TRUE(measured[1].times.empty());
  EXPECT_GE(time_of(measured[2]).rounds.size(), 10u);
}

/// Also while it is calibrated, so that a call whose result is at hand does not seem short.
TEST(Measure, BeforeEachSampleItGetsOtherInputsUntimed) {
  for (const double call_us : {600.0, 20.0}) {
    int varied = 0, calls_since = 0, most_calls = 0;
    Operation varying = operation("a", [&] { most_calls = std::max(most_calls, ++calls_since), spin_us(call_us); });
    varying.vary = [&] { ++varied, calls_since = 0, spin_us(2000); };
    const WindowTime time = time_of(measure({varying}, quick(), kCpu)[0]);
    EXPECT_LT(time.median_us, 1500);
    EXPECT_GT(varied, time.n);
    EXPECT_EQ(most_calls, time.calls_per_sample);
  }
}

TEST(Measure, PrintsNothing) {
  testing::internal::CaptureStdout();
  measure({operation("a", [] { spin_us(250); })}, quick(), kCpu);
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "");
}

TEST(Measure, ADeviceThatCannotBeMeasuredIsAnErrorOfEveryOperation) {
  const std::vector<Operation> operations = {operation("a", [] {}), operation("b", [] {})};
  const auto measured = measure(operations, quick(), Device{"cuda", 99, 90, "a GPU that is not there"});
  ASSERT_EQ(measured.size(), 2u);
  for (const Measured& m : measured) {
    EXPECT_TRUE(m.times.empty());
    EXPECT_NE(m.error, "");
  }
}

/// A GPU that a test scripts: every sample takes as long as the operation called last says.
class FakeGpu final : public Sampler {
 public:
  Sample sample(const std::function<void()>& call, int64_t calls, bool hold) override {
    for (int64_t i = 0; i < calls; ++i) call();
    const bool expires = hold && waits_for_device;
    ++samples;
    if (expires) ++expired;
    return {
        .us = call_us * double(calls) + (expires ? 20000 : 0), .sm_mhz = 1980, .held = hold && !expires, .hold_expired = expires};
  }
  void settle() override {
    if (failed) throw std::runtime_error("the device failed before");
  }
  Readings take_readings() override {
    Readings readings;
    readings.power_w = {700};
    readings.slowed = slow_readings > 0 && slow_readings-- > 0;
    if (readings.slowed) readings.throttle = {"hw_thermal"};
    return readings;
  }
  Grain grain() const override { return {50e-6, 16}; }
  bool is_gpu() const override { return true; }

  double call_us = 100;
  bool waits_for_device = false, failed = false;
  int slow_readings = 0;
  int samples = 0, expired = 0;
};

Regime regime(const std::string& name) {
  return {.name = name, .min_rounds = 6, .max_samples = 3};
}

TEST(MeasureRegimes, EveryRegimeHasItsOwnTimeInTheirOrder) {
  FakeGpu gpu;
  const std::vector<Operation> operations = {operation("op", [&] { gpu.call_us = 100; }),
                                             {"op+layout", [&] { gpu.call_us = 300; }, [] {}, false}};
  Regime cooled = regime("cooled");
  cooled.all_windows = false;
  const auto measured = measure(operations, quick(), {cooled, regime("sustained")}, gpu);
  ASSERT_EQ(measured[0].times.size(), 2u);
  EXPECT_EQ(measured[0].times[0].first, "cooled");
  EXPECT_EQ(measured[0].times[1].first, "sustained");
  ASSERT_EQ(measured[1].times.size(), 1u) << "only where all windows are timed";
  EXPECT_EQ(measured[1].times[0].first, "sustained");
  const WindowTime& time = measured[1].times[0].second;
  EXPECT_EQ(time.median_us, 300);
  EXPECT_EQ(time.rounds.size(), 6u);
  EXPECT_EQ(time.n, 18);
  EXPECT_TRUE(time.converged);
  ASSERT_TRUE(time.gpu);
  EXPECT_EQ(time.gpu->sm_mhz, 1980);
  EXPECT_EQ(time.gpu->power_w, 700);
  EXPECT_EQ(time.gpu->samples_without_hold, 0);
}

TEST(MeasureRegimes, IdlesBeforeEachOperationOfARound) {
  using Clock = std::chrono::steady_clock;
  FakeGpu gpu;
  std::optional<Clock::time_point> announced;
  int idled = 0;
  const auto called = [&] {
    idled += announced && Clock::now() - *announced >= std::chrono::milliseconds(50);
    announced.reset();
  };
  std::vector<Operation> operations;
  for (const char* id : {"a", "b"}) operations.push_back({id, called, [&] { announced = Clock::now(); }});
  Regime cooled = regime("cooled");
  cooled.idle_s = 0.05;
  measure(operations, without_budget(), {cooled}, gpu);
  EXPECT_EQ(idled, 2 * 6) << "once in each round, and not while it is calibrated";
  idled = 0;
  measure(operations, without_budget(), {regime("sustained")}, gpu);
  EXPECT_EQ(idled, 0);
}

TEST(MeasureRegimes, RoundsOfTheWarmUpDoNotCount) {
  const auto samples_and_rounds = [](double warm_up_s) {
    FakeGpu gpu;
    Regime regime_with_warm_up = regime("sustained");
    regime_with_warm_up.warm_up_s = warm_up_s;
    const auto measured = measure({operation("a", [] { spin_us(100); })}, without_budget(), {regime_with_warm_up}, gpu);
    return std::pair(gpu.samples, measured[0].times[0].second.rounds.size());
  };
  EXPECT_EQ(samples_and_rounds(0), (std::pair<int, size_t>(2 + 6 * 2, 6))) << "calibration, and each round wakes up first";
  const auto [samples, rounds] = samples_and_rounds(0.02);
  EXPECT_GT(samples, 2 + 6 * 2);
  EXPECT_EQ(rounds, 6u);
}

TEST(MeasureRegimes, ACallThatWaitsForTheDeviceIsTimedWithoutTheHold) {
  FakeGpu gpu;
  gpu.waits_for_device = true;
  const auto measured = measure({operation("waits", [] {})}, quick(), {regime("cooled")}, gpu);
  const WindowTime& time = measured[0].times[0].second;
  EXPECT_EQ(gpu.expired, 3) << "then it is no longer held";
  EXPECT_EQ(time.gpu->samples_without_hold, time.n);
  EXPECT_EQ(time.p95_us, 100) << "no sample holds the wait";
}

TEST(MeasureRegimes, ShortCallsAreGroupedUpToTheLimit) {
  FakeGpu gpu;
  gpu.call_us = 10;
  const auto measured = measure({operation("10 us", [] {})}, quick(), {regime("cooled")}, gpu);
  EXPECT_EQ(measured[0].times[0].second.calls_per_sample, 6);
  EXPECT_EQ(measured[0].times[0].second.median_us, 10);
  gpu.call_us = 0.1;
  EXPECT_EQ(measure({operation("0.1 us", [] {})}, quick(), {regime("cooled")}, gpu)[0].times[0].second.calls_per_sample, 16);
}

TEST(MeasureRegimes, RoundsOfASlowedDeviceAreTakenAgainAFewTimes) {
  FakeGpu gpu;
  gpu.slow_readings = 4;  // each second reading is that of a series
  const auto measured = measure({operation("a", [] {})}, quick(), {regime("cooled")}, gpu);
  EXPECT_EQ(measured[0].times[0].second.gpu->rounds_retaken, 2);
  EXPECT_EQ(measured[0].times[0].second.rounds.size(), 6u);
  EXPECT_TRUE(measured[0].times[0].second.gpu->throttle.empty());

  gpu.slow_readings = 1000;
  const auto hot = measure({operation("a", [] {})}, quick(), {regime("cooled")}, gpu);
  EXPECT_EQ(hot[0].times[0].second.gpu->rounds_retaken, 3)
      << "a device that stays slow is measured as it is, and the record says so";
  EXPECT_EQ(hot[0].times[0].second.rounds.size(), 6u);
  EXPECT_EQ(hot[0].times[0].second.gpu->throttle, std::vector<std::string>{"hw_thermal"});
}

TEST(MeasureRegimes, WhatFollowsAFailureOfTheDeviceIsNotAnnounced) {
  FakeGpu gpu;
  std::string announced;
  int calls = 0;
  const auto breaks = [&] {
    if (++calls < 5) return;
    gpu.failed = true;
    throw std::runtime_error("illegal memory access");
  };
  const std::vector<Operation> operations = {{"a", [] {}, [&] { announced = "a"; }},
                                             {"culprit", breaks, [&] { announced = "culprit"; }},
                                             {"c", [] {}, [&] { announced = "c"; }}};
  const auto measured = measure(operations, quick(), {regime("cooled"), regime("sustained")}, gpu);
  EXPECT_EQ(announced, "culprit") << "the last to be announced is the one that is blamed";
  EXPECT_EQ(measured[0].error, "the device failed before");
  EXPECT_EQ(measured[1].error, "illegal memory access");
  EXPECT_EQ(measured[2].error, "the device failed before");
}

TEST(Regimes, OfACpuAndOfAGpu) {
  ASSERT_EQ(regimes_of(kCpu, true).size(), 1u);
  EXPECT_EQ(regimes_of(kCpu, true)[0].name, "cpu_hot");
  const auto gpu = regimes_of({"cuda", 0, 90, "a GPU"}, true);
  ASSERT_EQ(gpu.size(), 2u);
  EXPECT_EQ(gpu[0].name, "cooled") << "the first is a record's own time";
  EXPECT_EQ(gpu[0].idle_s, 0.2);
  EXPECT_GE(gpu[0].min_rounds, 5);
  EXPECT_EQ(gpu[1].name, "sustained");
  EXPECT_EQ(gpu[1].idle_s, 0);
  const auto without_idle = regimes_of({"cuda", 0, 90, "a GPU"}, false);
  ASSERT_EQ(without_idle.size(), 1u);
  EXPECT_EQ(without_idle[0].name, "sustained");
  EXPECT_THROW(regimes_of({"abacus", 0, std::nullopt, ""}, true), std::invalid_argument);
}

}  // namespace
}  // namespace attnbench
