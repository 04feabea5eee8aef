#include "harness/worker/measure.hpp"

#include <chrono>
#include <stdexcept>
#include <thread>

#include <gtest/gtest.h>

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

TEST(Measure, TimesArePerCallAlsoWhereCallsAreBatched) {
  int calls = 0;
  const std::vector<Operation> operations = {operation("short", [&] { ++calls, spin_us(20); }),
                                             operation("long", [] { spin_us(600); })};
  const std::vector<Measured> measured = measure(operations, quick());
  ASSERT_EQ(measured.size(), 2u);
  EXPECT_GE(measured[0].time.median_us, 20);
  EXPECT_LT(measured[0].time.median_us, 200);
  EXPECT_GE(measured[1].time.median_us, 600);
  EXPECT_GE(calls, 5 * measured[0].time.n) << "a sample lasts at least 200 us";
}

TEST(Measure, KeepsTheSamplesOfEveryRound) {
  MeasureOptions options = quick();
  options.min_rounds = 12;
  options.time_budget_s = 0;
  const std::vector<Measured> measured = measure({operation("a", [] { spin_us(300); })}, options);
  const WindowTime& time = measured[0].time;
  ASSERT_EQ(time.rounds.size(), 12u) << "min_rounds are done though the budget is spent";
  EXPECT_EQ(time.n, 12) << "one sample a round where there is no time for more";
  EXPECT_LE(time.ci95_us[0], time.median_us);
  EXPECT_GE(time.ci95_us[1], time.median_us);
  EXPECT_LE(time.p5_us, time.p95_us);
}

TEST(Measure, SteadyOperationsStopEarlyAndUnsteadyOnesAreUnconverged) {
  int call = 0;
  const std::vector<Measured> unsteady =
      measure({operation("unsteady", [&] { ++call, spin_us(300 + 100 * (call * call % 7)); })}, [] {
        MeasureOptions options = quick();
        options.time_budget_s = 0.01;
        return options;
      }());
  EXPECT_FALSE(unsteady[0].time.converged);

  MeasureOptions patient = quick();
  patient.time_budget_s = 30;
  patient.target_half_width = 0.5;
  const std::vector<Measured> steady = measure({operation("steady", [] { spin_us(300); })}, patient);
  EXPECT_TRUE(steady[0].time.converged);
  EXPECT_EQ(steady[0].time.rounds.size(), 10u);
}

TEST(Measure, OrderIsDrawnFromItsSeedAndChanges) {
  const auto orders = [](uint64_t seed) {
    std::string sequence;
    std::vector<Operation> operations;
    for (char name : {'a', 'b', 'c'})
      operations.push_back({std::string(1, name), [] { spin_us(250); }, [&sequence, name] { sequence += name; }});
    MeasureOptions options;
    options.time_budget_s = 0;
    options.order_seed = seed;
    measure(operations, options);
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
  const std::vector<Measured> measured = measure(operations, quick());
  EXPECT_EQ(measured[0].error, "no kernel image");
  EXPECT_EQ(measured[1].error, "worn out");
  EXPECT_EQ(measured[2].error, "");
  EXPECT_GE(measured[2].time.rounds.size(), 10u);
}

TEST(Measure, PrintsNothing) {
  testing::internal::CaptureStdout();
  measure({operation("a", [] { spin_us(250); })}, quick());
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "");
}

}  // namespace
}  // namespace attnbench
