#include "reports/numbers.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include <fmt/format.h>

namespace attnbench {

std::string significant(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  const double size = std::abs(value);
  if (size == 0) return "0";
  std::string text = fmt::format("{:.2e}", value);
  const int exponent = std::stoi(text.substr(text.find('e') + 1));  // of the rounded value: 9.996 is 10.0
  if (exponent < -3 || exponent > 6) return text;
  return fmt::format("{:.{}f}", value, std::max(0, 2 - exponent));
}

std::string bytes_text(int64_t bytes) {
  static constexpr std::array kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; std::abs(value) >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{} {}", significant(value), kUnits[unit]);
}

Unit time_unit(std::span<const double> microseconds) {
  double smallest = INFINITY;
  for (const double time : microseconds) {
    if (std::isfinite(time)) smallest = std::min(smallest, time);
  }
  if (smallest >= 1e6 && std::isfinite(smallest)) return {"s", 1e6};
  if (smallest >= 1e3 && std::isfinite(smallest)) return {"ms", 1e3};
  return {"us", 1};
}

Unit rate_unit(std::span<const double> tflops) {
  const bool large = std::any_of(tflops.begin(), tflops.end(), [](double rate) { return rate >= 1; });
  return large ? Unit{"TFLOP/s", 1} : Unit{"GFLOP/s", 1e-3};
}

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace attnbench
