#include "harness/run/run_suites.hpp"

#include <algorithm>
#include <cstdlib>
#include <set>
#include <thread>
#include <tuple>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include "harness/run/errors.hpp"
#include "harness/run/gate.hpp"
#include "harness/run/interrupt.hpp"
#include "harness/run/planted.hpp"
#include "harness/run/progress.hpp"
#include "harness/run/run_folder.hpp"
#include "harness/run/worker_pool.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;

/// Writes results as they come and shows how far the run is.
class Recorder : public ResultSink {
 public:
  Recorder(RunFolder& folder, Progress& progress, const std::vector<Declaration>& backends, std::vector<std::string> gated)
      : folder_(folder), progress_(progress), backends_(backends), gated_(std::move(gated)) {}
  void take(const Record& record) override {
    folder_.append(to_line(record));
    progress_.count();
    if (is_red(record, backends_)) {
      if (std::ranges::find(gated_, record.backend) != gated_.end())
        progress_.count_failure(record);
      else
        progress_.count_finding();
    }
    tick();
  }
  void take(const Comparison& comparison) override { folder_.append(to_line(comparison)); }
  void on_stage(const PlannedCase& planned, const Stage& stage) override {
    progress_.working_on(fmt::format("{} {}: {}: {}", stage.backend, name_of(stage.pass), stage.stage, planned.case_line));
    tick();
  }
  void tick() override {
    folder_.sync_if_due();
    progress_.tick();
  }

 private:
  RunFolder& folder_;
  Progress& progress_;
  const std::vector<Declaration>& backends_;
  const std::vector<std::string> gated_;
};

/// Takes runs that have a record out of the plan. A case that was half done gets no comparison across the halves.
void remove_finished(std::vector<PlannedCase>& plan, const RunData& earlier) {
  std::set<std::tuple<std::string, std::string, Pass>> finished;
  for (const Record& record : earlier.records) finished.emplace(record.case_line, record.backend, record.pass);
  for (PlannedCase& planned : plan) {
    std::erase_if(planned.runs, [&](const auto& run) { return finished.contains({planned.case_line, run.first, run.second}); });
  }
  std::erase_if(plan, [](const PlannedCase& planned) { return planned.runs.empty(); });
}

/// A resume goes on with the run's own arguments, and what may be said anew.
void take_options_of(const RunData& earlier, RunCommand& command) {
  const RunCommand again = std::move(command);
  for (const RunHeader& header : earlier.headers)
    if (shard_of(header) != shard_of(earlier.headers.front()))
      throw RunError(fmt::format("{}: was merged from shards; resume those that have not ended, and merge them again",
                                 again.resume.string()));
  const std::vector<std::string>& words = earlier.headers.front().argv;
  const Command recorded = parse_command_line({words.begin() + (words.empty() ? 0 : 1), words.end()}, {});
  if (!std::holds_alternative<RunCommand>(recorded))
    throw RunError(fmt::format("{}: was not made by a run; cannot be resumed", again.resume.string()));
  command = std::get<RunCommand>(recorded);
  command.out.clear();
  command.resume = again.resume;
  if (!again.gate.empty()) command.gate = again.gate;
  if (!again.worker.command.empty()) command.worker.command = again.worker.command;
  if (again.worker.workers > 0) command.worker.workers = again.worker.workers;
  if (again.worker.timeout_s) command.worker.timeout_s = again.worker.timeout_s;
}

/// The command line with the program's name for its path, which says where somebody works and nothing about the run.
std::vector<std::string> named_by_program(std::vector<std::string> arguments) {
  if (!arguments.empty()) arguments.front() = std::filesystem::path(arguments.front()).filename().string();
  return arguments;
}

/// The selection of a command, once the worker has said which backends it has.
Selection selection_of(const RunCommand& command, const Hello& hello) {
  Selection selection = command.selection;
  if (command.selftest) selection.backends = selftest_backends(selection.backends, hello.backends, hello.device);
  return selection;
}

/// What the run's readers have to know: the real backends, and the planted ones that it runs.
std::vector<Declaration> declarations_of(const Hello& hello, const Selection& selection) {
  std::vector<Declaration> declarations;
  for (const Declaration& declaration : hello.backends)
    if (!is_planted(declaration.name) || std::ranges::find(selection.backends, declaration.name) != selection.backends.end())
      declarations.push_back(declaration);
  return declarations;
}

nlohmann::json environment_of(const Hello& hello, const RunCommand& command, const Selection& selection, int workers,
                              size_t runs) {
  nlohmann::json environment = hello.environment;
  environment["worker"] = hello.worker;
  environment["workers"] = workers;
  environment["runs"] = runs;
  environment["device"] = hello.device;
  const std::vector<Declaration> declarations = declarations_of(hello, selection);
  environment["backends"] = declarations;
  environment["gated"] = gated_backends(command.gate, declarations);
  const Shard& shard = selection.shard;
  if (shard.count > 1) environment["shard"] = {{"index", shard.index}, {"count", shard.count}};
  environment["not_on_device"] = not_on_device(selection, hello.backends, hello.device);
  return environment;
}

/// How many workers judge. On a GPU each waits most of the time for a core (plans of kernels, launches, oracles of small cases),
/// so that several share the cores; on a CPU one worker has work for all of them.
int workers_of(const WorkerOptions& options) {
  const bool on_cpu = options.device == "cpu";
  if (on_cpu && options.workers > 1)
    throw UsageError(fmt::format("--workers {}: on a CPU one worker uses all cores; several are for a GPU", options.workers));
  if (on_cpu) return 1;
  if (options.workers > 0) return options.workers;
  constexpr int kCoresOfWorker = 4, kMostWorkers = 4;
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
  return command;
}

/// Workers that share a machine do not each take all cores for their oracles. What the user has set holds.
void share_cores(int workers) {
  if (workers == 1) return;
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  setenv("OMP_NUM_THREADS", std::to_string(std::max(1, cores / workers)).c_str(), 0);
}

void check_same_device(const RunData& earlier, const nlohmann::json& environment) {
  const nlohmann::json before = earlier.headers.front().environment.value("device", nlohmann::json());
  if (before != environment["device"])
    throw RunError(
        fmt::format("--resume: the run was made on {}, this machine has {}", before.dump(), environment["device"].dump()));
}

std::string run_name(const std::vector<Suite>& suites) {
  std::vector<std::string> names;
  for (const Suite& suite : suites) names.push_back(suite.name);
  return fmt::format("{}", fmt::join(names, "+"));
}

std::vector<PlannedCase> plan_run(const Selection& selection, const std::vector<Suite>& suites, const Hello& hello,
                                  const RunData* earlier) {
  std::vector<PlannedCase> plan = make_plan(suites, selection, hello.backends, hello.device);
  if (plan.empty())
    throw NothingMatched(
        "nothing matched: no run is left after --backend, --pass, --filter, --shard and the cases' own device=; "
        "--filter sees cases as attnbench list prints them, without defaults such as dtype=bf16");
  if (earlier) remove_finished(plan, *earlier);
  return plan;
}

/// As the workers see it; made at once, so that a folder that cannot be is said before anything runs.
std::string dump_folder(const fs::path& folder) {
  if (folder.empty()) return "";
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw UsageError(fmt::format("--dump {}: cannot be made: {}", folder.string(), error.message()));
  return fs::absolute(folder).string();
}

/// Everything between an open folder and its last record.
std::optional<int> run_in(RunFolder& folder, const RunCommand& command, const std::vector<Suite>& suites, const RunFields& fields,
                          const std::vector<std::string>& arguments, const RunData* earlier) {
  try {
    const int workers = workers_of(command.worker);
    share_cores(workers);
    WorkerPool pool(worker_settings(command.worker, folder.worker_log()), workers);
    const Hello& hello = pool.hello();
    const Selection selection = selection_of(command, hello);
    const std::vector<PlannedCase> plan = plan_run(selection, suites, hello, earlier);
    const nlohmann::json environment = environment_of(hello, command, selection, workers, count_runs(plan));
    if (earlier) check_same_device(*earlier, environment);
    folder.append(to_line(RunHeader{fields.run, named_by_program(arguments), utc_now(), environment}));
    Progress progress(stderr, count_runs(plan));
    Recorder recorder(folder, progress, hello.backends, gated_backends(command.gate, hello.backends));
    pool.run(plan, fields, recorder);
    return std::nullopt;
  } catch (const Interrupted& interrupted) {
    return interrupted.signal;
  }
}

}  // namespace

WorkerSettings worker_settings(const WorkerOptions& options, const fs::path& log) {
  constexpr double kCpuTimeout_s = 300, kGpuTimeout_s = 60;  // the oracle's steps take minutes on a few cores, seconds on a GPU
  return {worker_command(options), log, options.timeout_s.value_or(options.device == "cpu" ? kCpuTimeout_s : kGpuTimeout_s)};
}

std::vector<Suite> load_cases(const std::vector<std::string>& suites, const std::vector<std::string>& lines) {
  std::vector<Suite> loaded;
  for (const std::string& suite : suites) loaded.push_back(load_suite(suite));
  if (lines.empty()) return loaded;
  Suite typed{"case", {}};
  for (const std::string& line : lines)
    for (SuiteCase& c : expand_line(line, "--case")) typed.cases.push_back(std::move(c));
  loaded.push_back(std::move(typed));
  return loaded;
}

RunOutcome run_suites(RunCommand command, const std::vector<std::string>& arguments) {
  std::optional<RunData> earlier;
  if (!command.resume.empty()) {
    earlier = read_run(command.resume);
    take_options_of(*earlier, command);
  }
  const std::vector<Suite> suites = load_cases(command.suites, command.cases);
  const std::string dump = dump_folder(command.dump);
  const std::string run_id =
      earlier ? earlier->headers.front().run : make_run_id(command.selftest ? "selftest" : run_name(suites));
  RunFolder folder = earlier ? RunFolder::reopen(command.resume)
                             : RunFolder::create(command.out.empty() ? default_run_folder(run_id) : command.out);
  try {
    const auto interrupted = run_in(folder, command, suites, {run_id, command.assume_sm, command.check_only, dump}, arguments,
                                    earlier ? &*earlier : nullptr);
    const bool began = !folder.discard_if_empty();
    return {began ? folder.path() : fs::path(), interrupted};
  } catch (...) {
    folder.discard_if_empty();
    throw;
  }
}

}  // namespace attnbench
