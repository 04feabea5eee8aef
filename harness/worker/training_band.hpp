// Where the curves of a training run lie whose rounding is another one, from runs of a reference that differ in nothing else.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "harness/run/record.hpp"

namespace attnbench {

/// Needs two runs or more, of the same quantities and steps. The deviation of a step is relative to the mean of the runs, and the
/// geometric mean over the steps around it: of few runs alone it would be too uncertain for a limit.
struct Band {
  Curves mean;
  Curves deviation;  ///< standard deviation of a further run from the mean
  double limit = 0;  ///< deviations, by how many numbers all curves have
};
Band band_of(const std::vector<Curves>& runs);

/// mean - limit deviation, and mean + limit deviation.
Curves low_edge(const Band& band);
Curves high_edge(const Band& band);

/// A gate for each quantity: the largest distance from the mean, in deviations.
struct BandVerdict {
  std::map<std::string, Gate> gates;
  std::string reason;  ///< a sentence about the first step outside; empty: all are inside
};
BandVerdict judge_curves(const Curves& measured, const Band& band);

}  // namespace attnbench
