// From the samples of a window to what its record says about them.
#pragma once

#include <cstdint>
#include <vector>

#include "harness/run/record.hpp"
#include "harness/worker/sampler.hpp"

namespace attnbench {

/// What was sampled of one operation in one regime.
struct Series {
  std::vector<std::vector<Sample>> rounds;  ///< none is empty
  int64_t calls_per_sample = 1;
  Readings readings;           ///< of the time in which these samples were taken
  int64_t rounds_retaken = 0;  ///< thrown away, since the device was slowed down
};

/// Median and interval are over the medians of the rounds, the other quantiles over the samples. Needs a round.
/// target_half_width: of the interval, relative to the median. gpu: whether to say what the GPU did.
WindowTime summarise(const Series& series, double target_half_width, bool gpu);

}  // namespace attnbench
