// Times and rates as LaTeX tables, for a paper.
#pragma once

#include <string>

#include "harness/run/run_data.hpp"

namespace attnbench {

/// One table environment for each table of timing_tables.hpp; the document needs the package booktabs.
/// The caption names suite, pass, regime and device, so that a number never travels without them.
std::string latex_tables(const RunData& run);

}  // namespace attnbench
