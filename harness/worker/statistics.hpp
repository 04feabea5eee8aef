// Order statistics of samples: what a timing says about itself.
#pragma once

#include <array>
#include <vector>

namespace attnbench {

/// The quantile `fraction` in [0, 1], linear between neighbours. `values` need not be sorted; at least one.
double quantile(std::vector<double> values, double fraction);
inline double median(std::vector<double> values) {
  return quantile(std::move(values), 0.5);
}

/// Interval that holds the median of the distribution behind independent `values` with a probability of at least 95%,
/// whatever the distribution: the narrowest pair of order statistics (k-th smallest, k-th largest) for which the
/// binomial(n, 1/2) tails allow it. Fewer than 6 values cannot give 95%: then smallest and largest.
std::array<double, 2> median_ci95(std::vector<double> values);

}  // namespace attnbench
