// summary.md: the whole run for a reader, in Markdown.
#pragma once

#include <string>

#include "harness/run/run_data.hpp"

namespace attnbench {

/// The command lines of the run and of its resumes, as a section.
std::string command_section(const RunData& run);

/// Command, environment, verdict counts, every kind of failure and finding with its smallest case and repro line, safety flags,
/// the field's rule, gates without power, times, rates, memory, differences between backends, and why records are unsupported or
/// skipped.
std::string summary_markdown(const RunData& run);

}  // namespace attnbench
