// The red results of a run, in words: what is wrong, how much, where, and the line that reproduces it.
#pragma once

#include <string>
#include <vector>

#include "harness/run/run_data.hpp"

namespace attnbench {

struct Finding {
  const Record* record = nullptr;
  bool gated = false;  ///< a failure decides the exit code; a finding is a red result of a backend that is not gated
};

/// Every failed, error and mistrusted record, and every unsupported one inside the declared capabilities; the gated ones
/// first, each group in the run's order. The pointers live as long as `run`.
std::vector<Finding> findings_of(const RunData& run);

/// "FAILED".
std::string status_word(Status status);

/// One line for each thing to know: the case, the reason, each gate that failed (of a mistrusted record: that has no
/// power), its statistic and limit, the worst
/// element [sequence, head, token, channel], got and expected, the count of bad elements, the repro line. A record that says how
/// its tensors failed has failure_details() instead of the gates and places, with a map of where if that is wanted.
std::vector<std::string> details(const Record& record, bool with_map);

}  // namespace attnbench
