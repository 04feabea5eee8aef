// In which states of the device, and for how long, operations are timed. Times of different regimes are not comparable.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/run/declaration.hpp"

namespace attnbench {

struct Regime {
  std::string name;          ///< harness/run/record.hpp says what each is
  bool all_windows = true;   ///< else only the first window of each backend
  double idle_s = 0;         ///< before each operation's samples of a round
  double warm_up_s = 0;      ///< rounds that do not count are run for at least this long
  int min_rounds = 0;        ///< 0: that of the options
  int64_t max_samples = 20;  ///< of an operation in one round
  double max_series_s = 1;   ///< these samples together, but at least one is taken
  double budget_share = 1;   ///< of the time budget: once it is spent, counted from the start of all, no further round begins
};

/// On a CPU cpu_hot. On a GPU cooled, unless the case is to do without, and sustained. The first is a record's own time.
std::vector<Regime> regimes_of(const Device& device, bool cooled);

}  // namespace attnbench
