// The exit code of a run, from its records alone.
#pragma once

#include <string>
#include <vector>

#include "harness/run/exit_code.hpp"
#include "harness/run/run_data.hpp"

namespace attnbench {

/// The backends that --gate names: "" (those marked ours), "all", "none" or "NAME,…". Throws UsageError on an unknown name.
std::vector<std::string> gated_backends(const std::string& choice, const std::vector<Declaration>& backends);

/// failed, mistrusted, error, or unsupported although the case lies inside what `backends`, those of its device, declare; a layer
/// may leave out more than it declares.
bool is_red(const Record& record, const std::vector<Declaration>& backends);
/// The same, by what the run's backends declare for the record's device.
bool is_red(const Record& record, const RunData& run);

struct GateResult {
  ExitCode exit_code = kExitOk;
  std::string sentence;  ///< what decided, with the counts: how many gated results were skipped, if any, among them
};

/// A canary that no pass judged wrong fails a run, whatever else it holds: it was let through, erred, or was not judged. Else:
/// kExitOk, kExitGate, kExitInfrastructure (nothing that was judged is gated) or kExitAllSkipped (of the gated backends, or of
/// all if the run holds none of them).
GateResult apply_gate(const RunData& run);

}  // namespace attnbench
