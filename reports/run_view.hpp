// What several reports ask of a run.
#pragma once

#include <string>
#include <vector>

#include "harness/run/run_data.hpp"

namespace attnbench {

/// Names of the backends: the declared ones in their order, then others as they appear in records and comparisons.
std::vector<std::string> backend_names(const RunData& run);

/// The suites in order of appearance.
std::vector<std::string> suite_names(const RunData& run);

/// "bf16", … of a case; "?" where this version's grammar cannot read the line (a record of another version).
std::string dtype_of(const std::string& case_line);

/// The record's own timing and those in other regimes; none unless the record passed: no number without a pass, whatever the
/// file says.
std::vector<const Timing*> timings_of(const Record& record);

/// Does the record decide the exit code?
bool is_gated(const RunData& run, const Record& record);

/// "cpu: AMD EPYC 9654", by the first header that names the device; else as the record has it, "cpu".
std::string device_title(const RunData& run, const std::string& device);

/// "not on cpu: NAME, …" for each kind of device of the run that has nothing for it in some backends.
std::vector<std::string> not_on_device_lines(const RunData& run);

/// Text lines of the environment, flattened: {"cpu.model", "…"}; declarations of backends, and backends left out, are not in it.
std::vector<std::pair<std::string, std::string>> environment_of(const RunHeader& header);

}  // namespace attnbench
