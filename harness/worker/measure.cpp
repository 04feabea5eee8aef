#include "harness/worker/measure.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <numeric>
#include <random>

#include <benchmark/benchmark.h>

#include "harness/worker/statistics.hpp"

namespace attnbench {

namespace {

using Clock = std::chrono::steady_clock;

/// A round starts with an untimed call, since the operation before has emptied the caches and the announcement has woken
/// its reader; for calls longer than this neither matters.
constexpr double kWarmUpBelow_s = 20e-3;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Google Benchmark reports to this and nothing else: stdout stays clean, the samples are taken by the operations.
class SilentReporter final : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>&) override {}
};

/// An operation and how it is sampled.
struct Sampled {
  const Operation* operation = nullptr;
  int64_t calls_per_sample = 1;
  double sample_s = 0;                      ///< about
  std::vector<std::vector<double>> rounds;  ///< microseconds per call
  std::string error;

  double sample() const {
    const Clock::time_point start = Clock::now();
    for (int64_t call = 0; call < calls_per_sample; ++call) operation->call();
    return seconds_since(start);
  }
};

/// Warms up and chooses calls_per_sample.
void calibrate(Sampled& sampled, double min_sample_s) try {
  sampled.operation->announce();
  sampled.sample();
  sampled.sample_s = sampled.sample();
  while (sampled.sample_s < min_sample_s) {
    const double factor = std::clamp(1.2 * min_sample_s / std::max(sampled.sample_s, 1e-9), 1.0, 10.0);
    sampled.calls_per_sample = std::max(sampled.calls_per_sample + 1, int64_t(factor * double(sampled.calls_per_sample)));
    sampled.sample_s = sampled.sample();
  }
} catch (const std::exception& e) {
  sampled.error = e.what();
}

void run_one(benchmark::State& state, Sampled& sampled) {
  std::vector<double> samples;
  try {
    sampled.operation->announce();
    if (sampled.sample_s < kWarmUpBelow_s) sampled.operation->call();
    for (auto _ : state) {
      const double seconds = sampled.sample();
      state.SetIterationTime(seconds);
      samples.push_back(seconds * 1e6 / double(sampled.calls_per_sample));
    }
    sampled.rounds.push_back(std::move(samples));
  } catch (const std::exception& e) {
    sampled.error = e.what();
    state.SkipWithError(e.what());
  }
}

/// Every operation once, `samples` samples each, in the given order.
void run_round(std::vector<Sampled>& all, const std::vector<size_t>& order, int64_t samples) {
  benchmark::ClearRegisteredBenchmarks();
  for (size_t index : order) {
    Sampled& sampled = all[index];
    if (!sampled.error.empty()) continue;
    benchmark::RegisterBenchmark(sampled.operation->id.c_str(), [&sampled](benchmark::State& state) { run_one(state, sampled); })
        ->UseManualTime()
        ->Iterations(samples);
  }
  SilentReporter reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter, "all");
  benchmark::ClearRegisteredBenchmarks();
}

WindowTime summarise(const std::vector<std::vector<double>>& rounds, double target_half_width) {
  std::vector<double> medians, samples;
  for (const std::vector<double>& round : rounds) {
    medians.push_back(median(round));
    samples.insert(samples.end(), round.begin(), round.end());
  }
  WindowTime time;
  time.median_us = median(medians);
  time.ci95_us = median_ci95(medians);
  time.p5_us = quantile(samples, 0.05);
  time.p95_us = quantile(samples, 0.95);
  time.n = int64_t(samples.size());
  time.rounds = rounds;
  time.converged = (time.ci95_us[1] - time.ci95_us[0]) / 2 <= target_half_width * time.median_us;
  return time;
}

bool all_converged(const std::vector<Sampled>& all, double target_half_width) {
  return std::all_of(all.begin(), all.end(), [&](const Sampled& sampled) {
    return !sampled.error.empty() || summarise(sampled.rounds, target_half_width).converged;
  });
}

}  // namespace

std::vector<Measured> measure(const std::vector<Operation>& operations, const MeasureOptions& options) {
  const Clock::time_point start = Clock::now();
  std::vector<Sampled> all;
  double round_s = 0;
  for (const Operation& operation : operations) {
    Sampled& sampled = all.emplace_back();
    sampled.operation = &operation;
    calibrate(sampled, options.min_sample_s);
    round_s += sampled.sample_s;
  }
  // The first min_rounds are to take about half of the budget.
  const double affordable = options.time_budget_s / 2 / (options.min_rounds * std::max(round_s, 1e-6));
  const int64_t samples = std::clamp<int64_t>(int64_t(affordable), 1, 20);

  std::mt19937_64 random(options.order_seed);
  std::vector<size_t> order(all.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto failed = [](const Sampled& sampled) { return !sampled.error.empty(); };
  for (int round = 0; !std::all_of(all.begin(), all.end(), failed); ++round) {
    if (round >= options.min_rounds &&
        (seconds_since(start) >= options.time_budget_s || all_converged(all, options.target_half_width)))
      break;
    std::shuffle(order.begin(), order.end(), random);
    run_round(all, order, samples);
  }

  std::vector<Measured> results;
  for (const Sampled& sampled : all) {
    if (sampled.error.empty()) {
      results.push_back({summarise(sampled.rounds, options.target_half_width), ""});
    } else {
      results.push_back({{}, sampled.error});
    }
  }
  return results;
}

}  // namespace attnbench
