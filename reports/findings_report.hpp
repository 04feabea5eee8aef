// findings.md: the red results of a run by backend and cause, each with a small case, its repro line and what to do about it.
#pragma once

#include <string>
#include <vector>

#include "harness/run/shrink_record.hpp"
#include "reports/finding_groups.hpp"
#include "reports/text_table.hpp"

namespace attnbench {

inline constexpr const char* kFindingsFile = "findings.md";

/// Red results of one backend with one cause: that of a row of cases/advice.json, else, where nothing is known, those of one
/// pass and status with the same signature.
struct Cause {
  std::vector<Finding> findings;     ///< in the run's order; never empty
  std::string text;                  ///< the row's cause, else what is wrong, by pass
  std::string advice, source;        ///< empty: nothing is known
  const Record* smallest = nullptr;  ///< the one with the fewest scores to compute

  const Record& first() const { return *findings.front().record; }
};

/// The gated backends' first, then by backend in the order of the first finding. Throws RunError (cases/advice.json).
std::vector<Cause> causes_of(const RunData& run);

/// A line for each cause, for a terminal.
std::string causes_console(const RunData& run, const TextStyle& style);

/// `shrunk`: what the smallest records of some causes led to. Throws RunError (cases/advice.json).
std::string findings_markdown(const RunData& run, const std::vector<ShrunkRecord>& shrunk = {});

}  // namespace attnbench
