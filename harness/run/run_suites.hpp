// A whole run: suites in, a folder of results out.
#pragma once

#include <string>
#include <vector>

#include "harness/run/command_line.hpp"
#include "harness/run/run_setup.hpp"

namespace attnbench {

/// What records call the suite of the cases that were typed (--case).
inline constexpr const char* kTypedSuite = "case";

/// Suites and --case lines of a command. Throws CaseError.
std::vector<Suite> load_cases(const std::vector<std::string>& suites, const std::vector<std::string>& lines);

/// Runs what `command` asks for and writes DIR/results.jsonl. `arguments` are recorded; a resumed run reads its own.
/// Throws CaseError, UsageError, RunError (exit code 2),
/// InfrastructureError (3) and NothingMatched (4); what was finished before stays written.
RunOutcome run_suites(RunCommand command, const std::vector<std::string>& arguments);

}  // namespace attnbench
