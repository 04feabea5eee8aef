#include "harness/run/run_suites.hpp"

#include <algorithm>
#include <set>
#include <tuple>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/errors.hpp"
#include "harness/run/gate.hpp"
#include "harness/run/planted.hpp"
#include "harness/run/progress.hpp"
#include "harness/run/recorder.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;

/// Takes runs that have a record out of the plan. A case that was half done gets no comparison across the halves.
void remove_finished(std::vector<PlannedCase>& plan, const RunData& earlier) {
  std::set<std::tuple<std::string, std::string, Pass>> finished;
  for (const std::vector<Record>* records : {&earlier.records, &earlier.canaries})
    for (const Record& record : *records) finished.emplace(record.case_line, record.backend, record.pass);
  for (PlannedCase& planned : plan) {
    std::erase_if(planned.runs, [&](const auto& run) { return finished.contains({planned.case_line, run.first, run.second}); });
  }
  std::erase_if(plan, [](const PlannedCase& planned) { return planned.runs.empty(); });
}

/// A resume goes on with the run's own arguments, and what may be said anew.
void take_options_of(const RunData& earlier, RunCommand& command) {
  const RunCommand again = std::move(command);
  if (earlier.is_merged && shard_of(earlier.headers.front()).count > 1)
    throw RunError(
        fmt::format("{}: was merged from shards; resume those that have not ended, and merge them again", again.resume.string()));
  const std::vector<std::string>& words = earlier.headers.front().argv;
  const Command recorded = parse_command_line({words.begin() + (words.empty() ? 0 : 1), words.end()}, {});
  if (!std::holds_alternative<RunCommand>(recorded))
    throw RunError(fmt::format("{}: was not made by a run; cannot be resumed", again.resume.string()));
  command = std::get<RunCommand>(recorded);
  command.out.clear();
  command.resume = again.resume;
  if (!again.gate.empty()) command.gate = again.gate;
  if (!again.dump.empty()) command.dump = again.dump;
  if (!again.worker.command.empty()) command.worker.command = again.worker.command;
  if (again.worker.workers > 0) command.worker.workers = again.worker.workers;
  if (again.worker.timeout_s) command.worker.timeout_s = again.worker.timeout_s;
}

/// The selection of a command, once the worker has said which backends it has.
Selection selection_of(const RunCommand& command, const Hello& hello) {
  Selection selection = command.selection;
  if (command.selftest) selection.backends = selftest_backends(selection.backends, hello.backends, hello.device);
  return selection;
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
        "--filter sees cases as attnbench list prints them, without defaults such as dtype=bf16; cases of llama are run by "
        "layers "
        "(attnbench support names them), and training is a backward alone");
  if (earlier) remove_finished(plan, *earlier);
  return plan;
}

/// Our own worker has to be asked for planted backends; whether another has any, it says itself.
bool needs_planted(const std::vector<Suite>& suites, const WorkerOptions& worker) {
  const auto has_canary = [](const Suite& suite) {
    return std::ranges::any_of(suite.cases, [](const SuiteCase& c) { return !c.canaries.empty(); });
  };
  return worker.command.empty() && std::ranges::any_of(suites, has_canary);
}

/// As the workers see it; made at once, so that a folder that cannot be, or would stay empty, is said before anything runs.
std::string dump_folder(const fs::path& folder, const std::vector<Suite>& suites) {
  if (folder.empty()) return "";
  const auto is_dumped = [](const SuiteCase& c) { return operation_of(c.c) == "attention"; };
  if (std::ranges::none_of(suites, [&](const Suite& suite) { return std::ranges::any_of(suite.cases, is_dumped); }))
    throw UsageError(fmt::format("--dump {}: only cases of attention are dumped, and the run has none", folder.string()));
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw UsageError(fmt::format("--dump {}: cannot be made: {}", folder.string(), error.message()));
  return fs::absolute(folder).string();
}

/// Everything between an open folder and its last record.
void run_in(RunFolder& folder, const RunCommand& command, const std::vector<Suite>& suites, const RunFields& fields,
            const std::vector<std::string>& arguments, const RunData* earlier) {
  WorkerPool pool = start_workers(command.worker, folder);
  const Hello& hello = pool.hello();
  const Selection selection = selection_of(command, hello);
  const std::vector<PlannedCase> plan = plan_run(selection, suites, hello, earlier);
  nlohmann::json environment = environment_of(pool, selection, command.gate);
  environment["runs"] = count_runs(plan);
  if (fields.attention != kUsualAttention) environment["attention"] = fields.attention;
  if (fields.assume_sm) environment["assume_sm"] = *fields.assume_sm;
  if (const nlohmann::json canaries = canaries_of(plan, selection); !canaries.empty()) environment["canaries"] = canaries;
  if (earlier) check_same_device(*earlier, environment);
  folder.append(to_line(RunHeader{fields.run, named_by_program(arguments), utc_now(), environment}));
  Progress progress(stderr, count_runs(plan));
  Recorder recorder(folder, progress, hello.backends, gated_backends(command.gate, hello.backends));
  pool.run(plan, fields, recorder);
  pool.finish();
}

}  // namespace

std::vector<Suite> load_cases(const std::vector<std::string>& suites, const std::vector<std::string>& lines) {
  std::vector<Suite> loaded;
  for (const std::string& suite : suites) loaded.push_back(load_suite(suite));
  if (lines.empty()) return loaded;
  Suite typed{kTypedSuite, {}};
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
  if (needs_planted(suites, command.worker)) command.worker.planted = true;
  const std::string dump = dump_folder(command.dump, suites);
  const std::string run_id = earlier ? earlier->headers.front().run
                                     : make_run_id(command.selftest            ? "selftest"
                                                   : command.audit_repeats > 0 ? "audit"
                                                                               : run_name(suites));
  const RunFields fields{run_id, command.assume_sm, command.check_only, dump, command.audit_repeats, command.worker.attention};
  return write_run(earlier ? RunFolder::reopen(command.resume) : create_run(command.out, run_id),
                   [&](RunFolder& folder) { run_in(folder, command, suites, fields, arguments, earlier ? &*earlier : nullptr); });
}

}  // namespace attnbench
