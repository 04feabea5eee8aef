// What a person sees on the terminal after a run.
#pragma once

#include <string>

#include "harness/run/run_data.hpp"
#include "reports/text_table.hpp"

namespace attnbench {

/// Failures and findings first (those of the first kinds), then warnings and safety flags, verdict counts, times, rates, memory,
/// and the differences between the backends. `style.max_rows` bounds each table of times and rates.
std::string console_report(const RunData& run, const TextStyle& style);

}  // namespace attnbench
