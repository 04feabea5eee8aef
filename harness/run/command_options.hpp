// The options of the commands that run cases: how CLI11 reads them, and what may be said together.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "harness/run/command_line.hpp"

namespace attnbench {

/// Texts as they were typed, before they are checked.
struct TypedOptions {
  std::vector<std::string> backends;
  std::string pass = "both", shard = "1/1", assume_sm, seed = "0", seeds;
};

/// Throws the UsageError of an option: what was got, and what is expected.
[[noreturn]] void refuse_option(const std::string& option, const std::string& got, const std::string& expected);

/// "7.5" as 75; nothing of nothing. Throws UsageError.
std::optional<int> parse_sm(const std::string& text);

/// Device and timeout. Throws UsageError.
void check_worker(const WorkerOptions& worker);

/// --device, --worker and --timeout, which every command has that runs a worker.
void add_worker_options(CLI::App& app, WorkerOptions& worker, const char* usual_device = "a GPU where there is one");

/// What CLI11 writes into the command and into `typed`.
void add_run_options(CLI::App& app, RunCommand& run, TypedOptions& typed);
void add_audit_options(CLI::App& app, RunCommand& audit, TypedOptions& typed);
void add_selftest_options(CLI::App& app, SelftestCommand& selftest);
void add_fuzz_options(CLI::App& app, FuzzCommand& fuzz, TypedOptions& typed);
void add_calibrate_options(CLI::App& app, CalibrateCommand& calibrate, TypedOptions& typed);

/// The command, once it was parsed: checked, and what was typed in its place. Throws UsageError.
RunCommand finish_run(const CLI::App& app, RunCommand run, const TypedOptions& typed);
AuditCommand finish_audit(const CLI::App& app, RunCommand run, const TypedOptions& typed);
SelftestCommand finish_selftest(const CLI::App& app, SelftestCommand selftest);
FuzzCommand finish_fuzz(const CLI::App& app, FuzzCommand fuzz, const TypedOptions& typed);
CalibrateCommand finish_calibrate(const CLI::App& app, CalibrateCommand calibrate, const TypedOptions& typed);

}  // namespace attnbench
