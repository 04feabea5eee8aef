#include "harness/worker/training_band.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <fmt/format.h>

namespace attnbench {
namespace {

/// Steps before and after that say how far runs are apart.
constexpr int64_t kNeighbours = 10;

/// A run that does not move at all from another one (fp32, whose first loss is the same to the last bit) is not held to less.
constexpr double kLeastDeviation = 1e-7;

/// How often a sound run may leave the band, were its deviations normal and all numbers independent.
constexpr double kFalseAlarms = 1e-6;

/// Differences grow from step to step, in bursts, which no normal distribution knows. Not derived but seen: of 36 trainings with
/// sound backends on a CPU the farthest went 5.5 deviations, where normal numbers go beyond 6.3 to 6.7 once in a million runs.
constexpr double kBursts = 1.5;

/// exp of the mean of ln(chi^2 / n) with n degrees of freedom: by so much a geometric mean of variances is too small.
double of_geometric_mean(double n) {
  const double half = n / 2;  // digamma by its recurrence and asymptotic series
  double digamma = 0, x = half;
  for (; x < 6; ++x) digamma -= 1 / x;
  digamma += std::log(x) - 1 / (2 * x) - 1 / (12 * x * x) + 1 / (120 * x * x * x * x);
  return std::exp(digamma - std::log(half));
}

struct Moments {
  std::vector<double> mean, relative_variance;
};

Moments moments_of(const std::vector<const std::vector<double>*>& runs) {
  const auto count = static_cast<double>(runs.size());
  Moments moments;
  for (size_t step = 0; step < runs.front()->size(); ++step) {
    double sum = 0, squares = 0;
    for (const auto* run : runs) sum += (*run)[step];
    const double mean = sum / count;
    for (const auto* run : runs) squares += std::pow((*run)[step] - mean, 2);
    moments.mean.push_back(mean);
    moments.relative_variance.push_back(squares / (count - 1) / (mean * mean));
  }
  return moments;
}

std::vector<double> deviations(const Moments& moments, size_t runs) {
  const auto steps = static_cast<int64_t>(moments.mean.size());
  std::vector<double> result;
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t first = std::max<int64_t>(0, step - kNeighbours), last = std::min(steps - 1, step + kNeighbours);
    double logarithms = 0;
    for (int64_t i = first; i <= last; ++i)
      logarithms += std::log(std::max(moments.relative_variance[static_cast<size_t>(i)], kLeastDeviation * kLeastDeviation));
    const double variance =
        std::exp(logarithms / static_cast<double>(last - first + 1)) / of_geometric_mean(static_cast<double>(runs - 1));
    const double further = 1 + 1 / static_cast<double>(runs);  // the mean is uncertain too
    result.push_back(std::abs(moments.mean[static_cast<size_t>(step)]) * std::sqrt(variance * further));
  }
  return result;
}

Curves edge(const Band& band, double side) {
  Curves curves = band.mean;
  for (auto& [name, numbers] : curves)
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] += side * band.limit * band.deviation.at(name)[i];
  return curves;
}

}  // namespace

Band band_of(const std::vector<Curves>& runs) {
  Band band;
  int64_t numbers = 0;
  for (const auto& [name, curve] : runs.front()) {
    std::vector<const std::vector<double>*> of_quantity;
    for (const Curves& run : runs) of_quantity.push_back(&run.at(name));
    const Moments moments = moments_of(of_quantity);
    band.mean[name] = moments.mean;
    band.deviation[name] = deviations(moments, runs.size());
    numbers += static_cast<int64_t>(curve.size());
  }
  band.limit = kBursts * std::sqrt(2 * std::log(2 * static_cast<double>(numbers) / kFalseAlarms));
  return band;
}

Curves low_edge(const Band& band) {
  return edge(band, -1);
}

Curves high_edge(const Band& band) {
  return edge(band, 1);
}

BandVerdict judge_curves(const Curves& measured, const Band& band) {
  BandVerdict verdict;
  size_t first_step = SIZE_MAX;  // outside, and the quantity that is farthest there
  double farthest = 0;
  for (const auto& [name, curve] : measured) {
    const std::vector<double>&mean = band.mean.at(name), &deviation = band.deviation.at(name);
    double largest = 0;
    for (size_t step = 0; step < curve.size(); ++step) {
      const double measured_distance = std::abs(curve[step] - mean[step]) / deviation[step];
      const double distance = std::isnan(measured_distance) ? INFINITY : measured_distance;
      largest = std::max(largest, distance);
      if (distance <= band.limit || step > first_step || (step == first_step && distance <= farthest)) continue;
      first_step = step;
      farthest = distance;
      verdict.reason =
          fmt::format("{} leaves the band at step {}: {:.6g}, {:.1f} deviations from the mean of the references, {:.6g}", name,
                      step + 1, curve[step], distance, mean[step]);
    }
    const bool inside = largest <= band.limit;
    verdict.gates[name] = {largest, band.limit, static_cast<int64_t>(curve.size()),
                           inside ? Gate::Verdict::pass : Gate::Verdict::fail, band.limit};
  }
  return verdict;
}

}  // namespace attnbench
