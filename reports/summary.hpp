// summary.md: the whole run for a reader, in Markdown.
#pragma once

#include <string>

#include "harness/run/run_data.hpp"

namespace attnbench {

/// Command, environment, verdict counts, all failures and findings with their repro lines, safety flags, the field's rule,
/// gates without power, times, rates, memory, differences between backends, and why records are unsupported or skipped.
std::string summary_markdown(const RunData& run);

}  // namespace attnbench
