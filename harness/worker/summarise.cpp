#include "harness/worker/summarise.hpp"

#include <algorithm>
#include <cmath>

#include "harness/worker/statistics.hpp"

namespace attnbench {

namespace {

/// Clocks resolve no more than these, and records hold every sample.
constexpr double kPerMicrosecond = 1000, kPerMegahertz = 10;

double rounded(double value, double steps_per_unit) {
  return std::round(value * steps_per_unit) / steps_per_unit;
}

GpuConditions conditions(const Series& series) {
  GpuConditions gpu;
  std::vector<double> clocks;
  for (const std::vector<Sample>& round : series.rounds) {
    std::vector<double>& round_mhz = gpu.sm_mhz_rounds.emplace_back();
    for (const Sample& sample : round) {
      round_mhz.push_back(rounded(sample.sm_mhz, kPerMegahertz));
      if (!std::isnan(sample.sm_mhz)) clocks.push_back(round_mhz.back());
      gpu.samples_without_hold += !sample.held;
    }
  }
  const Readings& readings = series.readings;
  if (!clocks.empty()) gpu.sm_mhz = median(clocks);
  if (!readings.power_w.empty()) gpu.power_w = median(readings.power_w);
  if (!readings.temperature_c.empty())
    gpu.temperature_c = *std::max_element(readings.temperature_c.begin(), readings.temperature_c.end());
  gpu.throttle.assign(readings.throttle.begin(), readings.throttle.end());
  gpu.rounds_retaken = series.rounds_retaken;
  return gpu;
}

}  // namespace

WindowTime summarise(const Series& series, double target_half_width, bool gpu) {
  WindowTime time;
  std::vector<double> medians, samples;
  for (const std::vector<Sample>& round : series.rounds) {
    std::vector<double>& round_us = time.rounds.emplace_back();
    for (const Sample& sample : round) round_us.push_back(rounded(sample.us / double(series.calls_per_sample), kPerMicrosecond));
    medians.push_back(median(round_us));
    samples.insert(samples.end(), round_us.begin(), round_us.end());
  }
  time.median_us = median(medians);
  time.ci95_us = median_ci95(medians);
  time.p5_us = quantile(samples, 0.05);
  time.p95_us = quantile(samples, 0.95);
  time.n = int64_t(samples.size());
  time.converged = (time.ci95_us[1] - time.ci95_us[0]) / 2 <= target_half_width * time.median_us;
  time.calls_per_sample = series.calls_per_sample;
  if (gpu) time.gpu = conditions(series);
  return time;
}

}  // namespace attnbench
