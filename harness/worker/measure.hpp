// Times operations against each other: interleaved in rounds, driven by Google Benchmark with manual time.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "harness/run/record.hpp"

namespace attnbench {

/// One timed span of one backend and pass.
struct Operation {
  std::string id;                  ///< for messages: "flash_varlen backward op"
  std::function<void()> call;      ///< may throw: then this operation ends without a time
  std::function<void()> announce;  ///< called before a series of calls, untimed: a crash has a name
};

struct MeasureOptions {
  int min_rounds = 10;
  double time_budget_s = 2;          ///< of all operations together; min_rounds are done even if they take longer
  uint64_t order_seed = 0;           ///< of the order of the operations, drawn anew for each round
  double min_sample_s = 200e-6;      ///< shorter operations are called several times for one sample
  double target_half_width = 0.005;  ///< of the confidence interval, relative to the median
};

struct Measured {
  WindowTime time;    ///< microseconds per call; the median and its interval are over the medians of the rounds
  std::string error;  ///< why there is no time; empty: there is one
};

/// Regime cpu_hot: caches as the operations leave them, steady clock. Rounds go on until min_rounds are done and every
/// interval is narrow enough, or the budget is spent (converged = false for those that are still too wide).
/// One result for each operation, in their order. Prints nothing.
std::vector<Measured> measure(const std::vector<Operation>& operations, const MeasureOptions& options);

}  // namespace attnbench
