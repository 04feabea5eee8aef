// How the backends differ from each other: users ask for that besides the oracle's verdict.
#pragma once

#include <vector>

#include "harness/run/run_data.hpp"
#include "reports/text_table.hpp"

namespace attnbench {

/// One backend x backend table for each dtype and tensor: the largest difference over the cases; max |a - b| above the
/// diagonal, the relative L2 norm below. Outputs that did not pass the oracle are included: this table judges nothing.
std::vector<TextTable> difference_tables(const RunData& run);

}  // namespace attnbench
