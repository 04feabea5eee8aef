// Times operations against each other: interleaved in rounds, driven by Google Benchmark with manual time.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "harness/run/declaration.hpp"
#include "harness/run/record.hpp"
#include "harness/worker/regimes.hpp"
#include "harness/worker/sampler.hpp"

namespace attnbench {

/// One timed span of one backend and pass.
struct Operation {
  std::string id;                   ///< for messages: "flash_varlen backward op"
  std::function<void()> call;       ///< may throw: then this operation ends without a time
  std::function<void()> announce;   ///< called before a series of calls, untimed: a crash has a name
  bool in_every_regime = true;      ///< else only in those that take all windows
  std::function<void()> vary = {};  ///< called before each sample, untimed: it gets other inputs; empty: they stay
};

struct MeasureOptions {
  int min_rounds = 10;               ///< of a regime that does not say otherwise
  double time_budget_s = 2;          ///< of all operations together; the least rounds are done even if they take longer
  uint64_t order_seed = 0;           ///< of the order of the operations, drawn anew for each round
  bool cooled = true;                ///< on a GPU: in that regime too
  double target_half_width = 0.005;  ///< of the confidence interval, relative to the median
};

struct Measured {
  /// By regime, in their order. Microseconds per call; the median and its interval are over the medians of the rounds.
  std::vector<std::pair<std::string, WindowTime>> times;
  std::string error;           ///< why there is no time; empty: there is one
  bool out_of_memory = false;  ///< that is the reason
};

/// Regime after regime, rounds go on until the least number is done and every interval is narrow enough, or the budget is
/// spent (converged = false for those that are still too wide). One result for each operation, in their order. Prints nothing.
std::vector<Measured> measure(const std::vector<Operation>& operations, const MeasureOptions& options,
                              const std::vector<Regime>& regimes, Sampler& sampler);

/// The same in the device's regimes; on a GPU on LibTorch's current stream. A build that cannot measure there says so in every
/// error.
std::vector<Measured> measure(const std::vector<Operation>& operations, const MeasureOptions& options, const Device& device);

}  // namespace attnbench
