#include "reports/google_benchmark.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <sstream>
#include <vector>

#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "reports/numbers.hpp"
#include "reports/run_view.hpp"

namespace attnbench {
namespace {

using GoogleRun = benchmark::BenchmarkReporter::Run;

constexpr double kSecondsPerMicrosecond = 1e-6;

/// JSON has no NaN, and a time of 0 or below is no time.
bool usable(double microseconds) {
  return std::isfinite(microseconds) && microseconds > 0;
}

/// What all runs of one (record, regime, window) share.
struct Series {
  const Record* record = nullptr;
  std::string name;
  std::optional<double> flop;    ///< of one call; unset: not known for this window
  std::vector<double> round_us;  ///< median of each round
  std::vector<int64_t> samples;  ///< of each round
  int64_t family = 0;
};

Series series_of(const Record& record, const Timing& timing, const std::string& window, int64_t family) {
  const bool own = timing.regime == record.time->regime;
  Series series{&record,
                fmt::format("{}/{}/{}{}/{}", record.backend, name_of(record.pass), window, own ? "" : " " + timing.regime,
                            record.case_line),
                {},
                {},
                {},
                family};
  const WindowTime& time = timing.windows.at(window);
  for (const auto& round : time.rounds) {
    if (round.empty() || !std::all_of(round.begin(), round.end(), usable)) continue;
    series.round_us.push_back(median_of(round));
    series.samples.push_back(static_cast<int64_t>(round.size()));
  }
  series.flop = timing.tflops * 1e12 * timing.windows.at(main_window(timing)).median_us * 1e-6;
  return series;
}

GoogleRun base_run(const Series& series, double real_us, int64_t iterations) {
  GoogleRun run;
  run.run_name.function_name = series.name;
  run.family_index = series.family;
  run.per_family_instance_index = 0;
  run.repetitions = static_cast<int64_t>(series.round_us.size());
  run.repetition_index = GoogleRun::no_repetition_index;
  run.threads = 1;
  run.time_unit = benchmark::kMicrosecond;
  run.statistics = nullptr;
  run.iterations = iterations;
  run.real_accumulated_time = real_us * kSecondsPerMicrosecond * static_cast<double>(iterations);
  run.cpu_accumulated_time = run.real_accumulated_time;
  return run;
}

/// Counters of a run that takes `real_us` a call.
void add_counters(GoogleRun& run, const Series& series, double real_us) {
  const double rate = series.flop.value_or(NAN) / (real_us * kSecondsPerMicrosecond);
  if (std::isfinite(rate)) run.counters["FLOP/s"] = benchmark::Counter(rate);
  if (!series.record->memory) return;
  run.counters["peak_bytes"] = benchmark::Counter(static_cast<double>(series.record->memory->peak_bytes));
  run.counters["workspace_bytes"] = benchmark::Counter(static_cast<double>(series.record->memory->workspace_bytes));
}

GoogleRun aggregate_run(const Series& series, const std::string& name, double value, benchmark::StatisticUnit unit) {
  GoogleRun run = base_run(series, value, static_cast<int64_t>(series.round_us.size()));
  run.run_type = GoogleRun::RT_Aggregate;
  run.aggregate_name = name;
  run.aggregate_unit = unit;
  if (unit == benchmark::kPercentage) run.real_accumulated_time = run.cpu_accumulated_time = value;
  return run;
}

std::vector<GoogleRun> runs_of(const Series& series) {
  std::vector<GoogleRun> runs;
  for (std::size_t i = 0; i < series.round_us.size(); ++i) {
    GoogleRun& run = runs.emplace_back(base_run(series, series.round_us[i], series.samples[i]));
    run.repetition_index = static_cast<int64_t>(i);
    add_counters(run, series, series.round_us[i]);
  }
  const auto n = static_cast<double>(runs.size());
  if (runs.size() < 2) return runs;
  const double mean = std::accumulate(series.round_us.begin(), series.round_us.end(), 0.0) / n;
  double squares = 0;
  for (const double us : series.round_us) squares += (us - mean) * (us - mean);
  const double stddev = std::sqrt(squares / (n - 1)), median = median_of(series.round_us);
  runs.push_back(aggregate_run(series, "mean", mean, benchmark::kTime));
  add_counters(runs.back(), series, mean);
  runs.push_back(aggregate_run(series, "median", median, benchmark::kTime));
  add_counters(runs.back(), series, median);
  runs.push_back(aggregate_run(series, "stddev", stddev, benchmark::kTime));
  runs.push_back(aggregate_run(series, "cv", stddev / mean, benchmark::kPercentage));
  return runs;
}

/// Google Benchmark's reporter would describe the machine that it runs on; times belong to the machine that was measured.
class RecordedContextReporter : public benchmark::JSONReporter {
 public:
  void open(const RunData& run) {
    nlohmann::ordered_json context;
    if (!run.headers.empty()) {
      const RunHeader& header = run.headers.back();
      context["date"] = header.started;
      context["executable"] = header.argv.empty() ? "" : header.argv.front();
      context["attnbench_run"] = header.run;
      for (const auto& [key, value] : environment_of(header)) context[key] = value;
    }
    context["cpu_time"] = "repeats real_time";
    GetOutputStream() << "{\n  \"context\": " << context.dump() << ",\n  \"benchmarks\": [\n";
  }
};

}  // namespace

std::string google_benchmark_json(const RunData& run) {
  std::ostringstream text;
  RecordedContextReporter reporter;
  reporter.SetOutputStream(&text);
  reporter.SetErrorStream(&text);
  reporter.open(run);
  int64_t family = 0;
  for (const Record& record : run.records) {
    for (const Timing* timing : timings_of(record))
      for (const auto& [window, time] : timing->windows)
        reporter.ReportRuns(runs_of(series_of(record, *timing, window, family++)));
  }
  reporter.Finalize();
  return text.str();
}

}  // namespace attnbench
