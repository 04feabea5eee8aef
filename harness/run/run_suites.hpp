// A whole run: suites in, a folder of results out.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "harness/run/command_line.hpp"
#include "harness/run/coordinator.hpp"

namespace attnbench {

/// attnbench-worker beside this executable, or the one of --worker, on its device. Throws InfrastructureError if there is no
/// executable beside this one.
WorkerSettings worker_settings(const WorkerOptions& options, const std::filesystem::path& log);

/// Suites and --case lines of a command. Throws CaseError.
std::vector<Suite> load_cases(const std::vector<std::string>& suites, const std::vector<std::string>& lines);

struct RunOutcome {
  std::filesystem::path folder;    ///< empty: interrupted before anything was written
  std::optional<int> interrupted;  ///< the signal that ended the run early
};

/// Runs what `command` asks for and writes DIR/results.jsonl. `arguments` are recorded; a resumed run reads its own.
/// Throws CaseError, UsageError, RunError (exit code 2),
/// InfrastructureError (3) and NothingMatched (4); what was finished before stays written.
RunOutcome run_suites(RunCommand command, const std::vector<std::string>& arguments);

}  // namespace attnbench
