// What every run begins and ends with, whatever its cases are: workers, a folder, a header.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "harness/run/command_line.hpp"
#include "harness/run/run_folder.hpp"
#include "harness/run/worker_pool.hpp"

namespace attnbench {

/// attnbench-worker beside this executable, or the one of --worker, on its device. Throws InfrastructureError if there is no
/// executable beside this one.
WorkerSettings worker_settings(const WorkerOptions& options, const std::filesystem::path& log);

/// As many as suit the device and the machine; they write their logs into `folder`. Throws what WorkerPool throws.
WorkerPool start_workers(const WorkerOptions& options, const RunFolder& folder);

/// What a run's header says of where and with whom it ran; how many runs it promises is for the caller to add.
nlohmann::json environment_of(const WorkerPool& pool, const Selection& selection, const std::string& gate);

/// The command line with the program's name for its path, which says where somebody works and nothing about the run.
std::vector<std::string> named_by_program(std::vector<std::string> arguments);

/// The folder of --out; where it is empty, runs/<run id>.
RunFolder create_run(const std::filesystem::path& out, const std::string& run_id);

struct RunOutcome {
  std::filesystem::path folder;    ///< empty: interrupted before anything was written
  std::optional<int> interrupted;  ///< the signal that ended the run early
};

/// Has `body` write into the folder. A folder in which it wrote nothing is taken away, whatever ended it.
RunOutcome write_run(RunFolder folder, const std::function<void(RunFolder&)>& body);

}  // namespace attnbench
