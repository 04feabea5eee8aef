#include "harness/run/run_setup.hpp"

#include <algorithm>
#include <cstdlib>
#include <thread>

#include <fmt/format.h>
#include <unistd.h>

#include "harness/run/errors.hpp"
#include "harness/run/gate.hpp"
#include "harness/run/interrupt.hpp"
#include "harness/run/planted.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;

/// How many workers judge. On a GPU each waits most of the time for a core (plans of kernels, launches, oracles of small cases),
/// so that several share the cores; on a CPU one worker has work for all of them.
int workers_of(const WorkerOptions& options) {
  const bool on_cpu = options.device == "cpu";
  if (on_cpu && options.workers > 1)
    throw UsageError(fmt::format("--workers {}: on a CPU one worker uses all cores; several are for a GPU", options.workers));
  if (on_cpu) return 1;
  if (options.workers > 0) return options.workers;
  constexpr int kCoresOfWorker = 2, kMostWorkers = 8;
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::clamp(cores / kCoresOfWorker, 1, kMostWorkers);
}

/// attnbench-worker, or the user's command: the shell splits and unquotes that; "$@" hands on the options that are added later.
std::vector<std::string> worker_program(const WorkerOptions& options) {
  if (!options.command.empty()) return {"/bin/sh", "-c", "exec " + options.command + " \"$@\"", "worker"};
  const fs::path worker = fs::read_symlink("/proc/self/exe").parent_path() / "attnbench-worker";
  if (access(worker.c_str(), X_OK) != 0)
    throw InfrastructureError(
        fmt::format("{}: there is no worker beside attnbench; build it, or name another with --worker", worker.string()));
  return {worker.string()};
}

std::vector<std::string> worker_command(const WorkerOptions& options) {
  std::vector<std::string> command = worker_program(options);
  command.insert(command.end(), {"--device", options.device});
  if (options.planted) command.push_back("--planted");
  if (options.attention != kUsualAttention) command.insert(command.end(), {"--attention", options.attention});
  if (options.attention == kAutoAttention && options.assume_sm)
    command.insert(command.end(), {"--assume-sm", std::to_string(*options.assume_sm)});
  return command;
}

/// What the run's readers have to know: the real backends, and the planted ones that it runs.
std::vector<Declaration> declarations_of(const Hello& hello, const Selection& selection) {
  std::vector<Declaration> declarations;
  for (const Declaration& declaration : hello.backends)
    if (!is_planted(declaration.name) || std::ranges::find(selection.backends, declaration.name) != selection.backends.end())
      declarations.push_back(declaration);
  return declarations;
}

/// Workers that share a machine do not each take all cores for their oracles. What the user has set holds.
void share_cores(int workers) {
  if (workers == 1) return;
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  setenv("OMP_NUM_THREADS", std::to_string(std::max(1, cores / workers)).c_str(), 0);
}

}  // namespace

WorkerSettings worker_settings(const WorkerOptions& options, const fs::path& log) {
  constexpr double kCpuTimeout_s = 300, kGpuTimeout_s = 60;  // the oracle's steps take minutes on a few cores, seconds on a GPU
  return {worker_command(options), log, options.timeout_s.value_or(options.device == "cpu" ? kCpuTimeout_s : kGpuTimeout_s)};
}

WorkerPool start_workers(const WorkerOptions& options, const RunFolder& folder) {
  constexpr int64_t kBytesOfWorker = int64_t{16} << 30;  // the largest cases of `full` take 8 GiB, and a worker's libraries 1
  const int workers = workers_of(options);
  share_cores(workers);
  return {worker_settings(options, folder.worker_log()), workers, options.workers > 0 ? 0 : kBytesOfWorker};
}

nlohmann::json environment_of(const WorkerPool& pool, const Selection& selection, const std::string& gate) {
  const Hello& hello = pool.hello();
  nlohmann::json environment = hello.environment;
  environment["worker"] = hello.worker;
  environment["workers"] = pool.workers();
  environment["device"] = hello.device;
  const std::vector<Declaration> declarations = declarations_of(hello, selection);
  environment["backends"] = declarations;
  environment["gate"] = gate;
  environment["gated"] = gated_backends(gate, declarations);
  if (selection.shard.count > 1) environment["shard"] = {{"index", selection.shard.index}, {"count", selection.shard.count}};
  environment["not_on_device"] = not_on_device(selection, hello.backends, hello.device);
  return environment;
}

std::vector<std::string> named_by_program(std::vector<std::string> arguments) {
  if (!arguments.empty()) arguments.front() = std::filesystem::path(arguments.front()).filename().string();
  return arguments;
}

RunFolder create_run(const fs::path& out, const std::string& run_id) {
  return RunFolder::create(out.empty() ? default_run_folder(run_id) : out);
}

RunOutcome write_run(RunFolder folder, const std::function<void(RunFolder&)>& body) {
  std::optional<int> interrupted;
  try {
    body(folder);
  } catch (const Interrupted& caught) {
    interrupted = caught.signal;
  } catch (...) {
    folder.discard_if_empty();
    throw;
  }
  const bool began = !folder.discard_if_empty();
  return {began ? folder.path() : fs::path(), interrupted};
}

}  // namespace attnbench
