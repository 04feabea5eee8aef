#include "harness/worker/measure.hpp"

#include <algorithm>
#include <chrono>
#include <exception>
#include <random>
#include <thread>

#include <benchmark/benchmark.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include "harness/worker/sentence.hpp"
#include "harness/worker/summarise.hpp"

namespace attnbench {

namespace {

using Clock = std::chrono::steady_clock;

/// A round starts with an untimed sample, since the operation before has emptied the caches, the announcement has woken its
/// reader, and a device that idled has to wake up; for samples longer than this none of it matters.
constexpr double kWarmUpBelow_s = 20e-3;

/// So often is an operation that waits for the device held back in vain: each time costs the whole limit of the hold.
constexpr int kMaxExpiredHolds = 3;

/// So many rounds of an operation are taken again in a regime because the device was slowed down. Then it stays slow.
constexpr int64_t kMaxRetaken = 3;

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
  Sampler* sampler = nullptr;
  int64_t calls_per_sample = 1;
  double cost_s = 0;  ///< of a sample, with all that surrounds the timed calls
  int expired_holds = 0;
  std::string error;
  bool out_of_memory = false;

  /// Ends it, with the exception that is being handled.
  void fail() {
    try {
      throw;
    } catch (const c10::OutOfMemoryError& e) {
      error = sentence_of(e);
      out_of_memory = true;
    } catch (const std::exception& e) {
      error = sentence_of(e);
    }
  }

  // of the regime in progress
  int64_t samples_per_round = 1;
  Series series;
  bool retake = false;  ///< its last round does not count

  Sample sample(bool hold) {
    if (operation->vary) operation->vary();
    return sampler->sample(operation->call, calls_per_sample, hold);
  }
  Sample sample() {
    const Sample held = sample(expired_holds < kMaxExpiredHolds);
    if (!held.hold_expired) return held;
    ++expired_holds;
    return sample(false);
  }
};

/// Warms up and chooses calls_per_sample.
void calibrate(Sampled& sampled) try {
  const Sampler::Grain grain = sampled.sampler->grain();
  sampled.sampler->settle();  // before it is announced: the last to be announced is the one that is blamed
  sampled.operation->announce();
  sampled.sample(false);  // whatever a first call builds or loads waits for the device
  for (;;) {
    const Clock::time_point start = Clock::now();
    const int expired_holds = sampled.expired_holds;
    const double sample_s = sampled.sample().us * 1e-6;
    if (sampled.expired_holds > expired_holds) continue;
    sampled.cost_s = seconds_since(start);
    if (sample_s >= grain.min_sample_s || sampled.calls_per_sample >= grain.max_calls) break;
    const double factor = std::clamp(1.2 * grain.min_sample_s / std::max(sample_s, 1e-9), 1.0, 10.0);
    const int64_t more = std::max(sampled.calls_per_sample + 1, int64_t(factor * double(sampled.calls_per_sample)));
    sampled.calls_per_sample = std::min(more, grain.max_calls);
  }
} catch (const std::exception&) {
  sampled.fail();
}

/// The samples of one round; those of a device that was slowed down are dropped, and `retake` says so.
void run_one(benchmark::State& state, Sampled& sampled, double idle_s) {
  std::vector<Sample> samples;
  try {
    sampled.sampler->settle();
    sampled.operation->announce();
    if (idle_s > 0) std::this_thread::sleep_for(std::chrono::duration<double>(idle_s));
    if (sampled.cost_s < kWarmUpBelow_s) sampled.sample();
    sampled.sampler->take_readings();
    for (auto _ : state) {
      samples.push_back(sampled.sample());
      state.SetIterationTime(samples.back().us * 1e-6);
    }
    const Readings readings = sampled.sampler->take_readings();
    sampled.retake = readings.slowed && sampled.series.rounds_retaken < kMaxRetaken;
    if (sampled.retake) {
      ++sampled.series.rounds_retaken;
    } else {
      sampled.series.rounds.push_back(std::move(samples));
      sampled.series.readings.add(readings);
    }
  } catch (const std::exception&) {
    sampled.fail();
    sampled.retake = false;
    state.SkipWithError(sampled.error.c_str());
  }
}

/// Each of these once, in this order.
void run_each(const std::vector<Sampled*>& operations, double idle_s) {
  benchmark::ClearRegisteredBenchmarks();
  for (Sampled* sampled : operations) {
    if (!sampled->error.empty()) continue;
    benchmark::RegisterBenchmark(sampled->operation->id.c_str(),
                                 [sampled, idle_s](benchmark::State& state) { run_one(state, *sampled, idle_s); })
        ->UseManualTime()
        ->Iterations(sampled->samples_per_round);
  }
  SilentReporter reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter, "all");
  benchmark::ClearRegisteredBenchmarks();
}

/// A round: each once, then those again that have to be, until none has.
void run_round(std::vector<Sampled*> operations, double idle_s) {
  while (!operations.empty()) {
    run_each(operations, idle_s);
    std::erase_if(operations, [](const Sampled* sampled) { return !sampled->retake; });
  }
}

void run_regime(std::vector<Sampled*> operations, const Regime& regime, const MeasureOptions& options, Clock::time_point start,
                std::mt19937_64& random) {
  const int min_rounds = regime.min_rounds > 0 ? regime.min_rounds : options.min_rounds;
  // The first min_rounds are to take at most about half of the budget.
  const double affordable_s = options.time_budget_s / 2 / (min_rounds * double(operations.size()));
  const double series_s = std::min(regime.max_series_s, affordable_s);
  for (Sampled* sampled : operations)
    sampled->samples_per_round = std::clamp<int64_t>(int64_t(series_s / std::max(sampled->cost_s, 1e-9)), 1, regime.max_samples);

  const auto none_left = [&] {
    return std::all_of(operations.begin(), operations.end(), [](const Sampled* sampled) { return !sampled->error.empty(); });
  };
  const auto converged = [&](const Sampled* sampled) {
    return !sampled->error.empty() || summarise(sampled->series, options.target_half_width, false).converged;
  };
  const auto enough = [&](int rounds) {
    return rounds >= min_rounds && (seconds_since(start) >= regime.budget_share * options.time_budget_s ||
                                    std::all_of(operations.begin(), operations.end(), converged));
  };
  const auto shuffled_round = [&] {
    std::shuffle(operations.begin(), operations.end(), random);
    run_round(operations, regime.idle_s);
  };
  for (const Clock::time_point warm = Clock::now(); !none_left() && seconds_since(warm) < regime.warm_up_s;) shuffled_round();
  for (Sampled* sampled : operations) {
    sampled->series = {};
    sampled->series.calls_per_sample = sampled->calls_per_sample;
  }
  for (int rounds = 0; !none_left() && !enough(rounds); ++rounds) shuffled_round();
}

}  // namespace

std::vector<Measured> measure(const std::vector<Operation>& operations, const MeasureOptions& options,
                              const std::vector<Regime>& regimes, Sampler& sampler) {
  const Clock::time_point start = Clock::now();
  std::vector<Sampled> all;
  for (const Operation& operation : operations) {
    Sampled& sampled = all.emplace_back();
    sampled.operation = &operation;
    sampled.sampler = &sampler;
    calibrate(sampled);
  }
  std::mt19937_64 random(options.order_seed);
  std::vector<Measured> results(all.size());
  for (const Regime& regime : regimes) {
    const auto takes_part = [&](const Sampled& sampled) {
      return sampled.error.empty() && (regime.all_windows || sampled.operation->in_every_regime);
    };
    std::vector<Sampled*> active;
    for (Sampled& sampled : all)
      if (takes_part(sampled)) active.push_back(&sampled);
    run_regime(active, regime, options, start, random);
    for (size_t i = 0; i < all.size(); ++i)
      if (takes_part(all[i]))
        results[i].times.emplace_back(regime.name, summarise(all[i].series, options.target_half_width, sampler.is_gpu()));
  }
  for (size_t i = 0; i < all.size(); ++i)
    if (!all[i].error.empty()) results[i] = {{}, all[i].error, all[i].out_of_memory};
  return results;
}

std::vector<Measured> measure(const std::vector<Operation>& operations, const MeasureOptions& options, const Device& device) try {
  std::unique_ptr<Sampler> sampler;
  if (device.kind == "cpu") {
    sampler = make_cpu_sampler();
  } else {
    const c10::impl::VirtualGuardImpl cuda(c10::kCUDA);
    sampler =
        make_gpu_sampler(device.index, cuda.getStream(c10::Device(c10::kCUDA, c10::DeviceIndex(device.index))).native_handle());
  }
  return measure(operations, options, regimes_of(device, options.cooled), *sampler);
} catch (const std::exception& e) {
  return std::vector<Measured>(operations.size(), Measured{{}, sentence_of(e), false});
}

}  // namespace attnbench
