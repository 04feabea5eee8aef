// `attnbench calibrate`: correct implementations over seeds and random cases, judged and not timed, into the folder of a run.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "harness/run/command_line.hpp"
#include "harness/run/gate.hpp"
#include "harness/run/null_distributions.hpp"
#include "harness/run/run_setup.hpp"

namespace attnbench {

/// Judges the cases of the suite with each seed in place of theirs, and beside each seed that many random cases. Writes
/// DIR/results.jsonl as a run does. Throws what run_suites() throws.
RunOutcome run_calibration(const CalibrateCommand& command, const std::vector<std::string>& arguments);

/// The file that the judge of the run's device reads now.
Calibration calibration_in_force(const CalibrateCommand& command);

/// Without --check: DIR/KIND.json, which the judge reads once it lies in cases/calibration. Returns its path.
std::filesystem::path write_calibration(const std::filesystem::path& folder, const RunData& run, Calibration calibration);

/// With --check: DIR/check.json. Returns its path.
std::filesystem::path write_check(const std::filesystem::path& folder, const RunData& run, const CalibrationCheck& check);

/// kExitGate for an alarm, kExitInfrastructure if nothing was judged, else kExitOk.
GateResult conclude(const CalibrationCheck& check);

}  // namespace attnbench
