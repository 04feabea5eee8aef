// Times, rates and memory: case rows x backend columns. Only passed records have any.
#pragma once

#include <vector>

#include "harness/run/run_data.hpp"
#include "reports/text_table.hpp"

namespace attnbench {

/// One table for each (suite, device, regime, pass): the median and half its 95% confidence interval in percent, one row for
/// each case (window "op") and one below it for each other window ("op+layout", "autograd"); "*" marks an interval wider than the
/// target. The title names suite, pass, regime, device and unit.
std::vector<TextTable> time_tables(const RunData& run);

/// Likewise TFLOP/s (or GFLOP/s) of the exact visible pairs over the median of the main window.
std::vector<TextTable> rate_tables(const RunData& run);

/// backend x pass: how much longer operations take in other regimes than in that of the records' own times (on a GPU
/// sustained / cooled), over the cases. Without rows where records have but one regime.
TextTable regime_table(const RunData& run);

/// One table for each (suite, device) of what was trained: the median time of a step, in one unit.
std::vector<TextTable> step_time_tables(const RunData& run);

/// Likewise the most that a step allocates, in MiB.
std::vector<TextTable> step_memory_tables(const RunData& run);

/// backend x pass: the largest peak and workspace, and its case; of passed records.
TextTable memory_table(const RunData& run);

}  // namespace attnbench
