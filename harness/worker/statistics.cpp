#include "harness/worker/statistics.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace attnbench {

double quantile(std::vector<double> values, double fraction) {
  if (values.empty()) throw std::invalid_argument("quantile of no values");
  std::sort(values.begin(), values.end());
  const double position = fraction * double(values.size() - 1);
  const size_t below = std::min(size_t(position), values.size() - 1);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (position - double(below)) * (values[above] - values[below]);
}

std::array<double, 2> median_ci95(std::vector<double> values) {
  if (values.empty()) throw std::invalid_argument("confidence interval of no values");
  std::sort(values.begin(), values.end());
  // The interval [k-th smallest, k-th largest] misses the median if fewer than k values fall on one side of it:
  // probability 2 P(B <= k - 1) with B ~ binomial(n, 1/2). Logarithms, since 2^-n underflows for many values.
  const double n = double(values.size());
  size_t k = 1;
  double tail = 0;
  for (size_t below = 0; below < values.size() / 2; ++below) {
    tail +=
        std::exp(std::lgamma(n + 1) - std::lgamma(double(below) + 1) - std::lgamma(n - double(below) + 1) - n * std::log(2.0));
    if (!(2 * tail <= 0.05)) break;
    k = below + 1;
  }
  return {values[k - 1], values[values.size() - k]};
}

}  // namespace attnbench
