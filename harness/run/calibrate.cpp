#include "harness/run/calibrate.hpp"

#include <fmt/format.h>

#include "harness/run/errors.hpp"
#include "harness/run/files.hpp"
#include "harness/run/json_reader.hpp"
#include "harness/run/progress.hpp"
#include "harness/run/random_case.hpp"
#include "harness/run/recorder.hpp"
#include "harness/run/run_suites.hpp"

namespace attnbench {
namespace {

constexpr const char* kRandomSuite = "random";

/// The suite with every seed, and the random cases of those seeds.
std::vector<Suite> cases_of(const CalibrateCommand& command) {
  const Suite lines = load_suite(command.suite);
  Suite seeded{lines.name, {}}, random{kRandomSuite, {}};
  for (uint64_t seed = command.seeds.first;; ++seed) {
    for (SuiteCase line : lines.cases) {
      line.c.seed = seed;
      seeded.cases.push_back(std::move(line));
    }
    for (int64_t i = 0; i < command.random; ++i)
      random.cases.push_back(
          {.c = random_case(seed, static_cast<uint64_t>(i)), .where = kRandomSuite, .suite = "", .canaries = {}});
    if (seed == command.seeds.second) break;
  }
  return {seeded, random};
}

/// Those that the calibration holds to be correct, as far as they are here; or whom the user names.
Selection selection_of(const CalibrateCommand& command, const Calibration& calibration, const Hello& hello) {
  Selection selection = command.selection;
  if (!selection.backends.empty()) return selection;
  for (const std::string& backend : calibration.backends)
    if (const Declaration* found = find_declaration(hello.backends, backend); found && runs_on(*found, hello.device))
      selection.backends.push_back(backend);
  if (selection.backends.empty()) throw NothingMatched("nothing matched: none of the calibration's backends is on this device");
  return selection;
}

/// The command less where its results went.
std::vector<std::string> without_out(const std::vector<std::string>& arguments) {
  std::vector<std::string> kept;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--out")
      ++i;
    else if (!arguments[i].starts_with("--out="))
      kept.push_back(arguments[i]);
  }
  return kept;
}

/// Command and machine; the rest is in the run's own header.
nlohmann::json made_by(const RunData& run, const CalibrationCheck& check) {
  const RunHeader& header = run.headers.front();
  nlohmann::json environment;
  for (const char* key : {"build", "cpu", "gpu", "device", "git"})
    if (header.environment.contains(key)) environment[key] = header.environment[key];
  return {{"command", without_out(header.argv)},
          {"run", header.run},
          {"started", header.started},
          {"environment", environment},
          {"cases", check.cases},
          {"tensors", check.tensors},
          {"results", check.results}};
}

}  // namespace

RunOutcome run_calibration(const CalibrateCommand& command, const std::vector<std::string>& arguments) {
  const std::vector<Suite> suites = cases_of(command);
  const Calibration calibration = calibration_in_force(command);
  const std::string run_id = make_run_id(command.check ? "calibration_check" : "calibration");
  return write_run(create_run(command.out, run_id), [&](RunFolder& folder) {
    WorkerPool pool = start_workers(command.worker, folder);
    const Selection selection = selection_of(command, calibration, pool.hello());
    const std::vector<PlannedCase> plan = make_plan(suites, selection, pool.hello().backends, pool.hello().device);
    if (plan.empty()) throw NothingMatched("nothing matched: no case of the suite is left");
    nlohmann::json environment = environment_of(pool, selection, "none");
    environment["runs"] = count_runs(plan);
    folder.append(to_line(RunHeader{run_id, named_by_program(arguments), utc_now(), environment}));
    Progress progress(stderr, count_runs(plan));
    Recorder recorder(folder, progress, pool.hello().backends, {});
    RunFields fields;
    fields.run = run_id;
    fields.check_only = true;
    pool.run(plan, fields, recorder);
    pool.finish();
  });
}

Calibration calibration_in_force(const CalibrateCommand& command) {
  std::string device = command.worker.device;
  if (!command.from.empty()) {
    const RunData run = read_run(command.from);
    if (run.records.empty()) throw UsageError(fmt::format("calibrate --from {}: the run has no results", command.from.string()));
    device = run.records.front().device;
  }
  const std::string kind = device.substr(0, device.find(':'));
  return read_calibration(calibration_file(kind), kind);
}

std::filesystem::path write_calibration(const std::filesystem::path& folder, const RunData& run, Calibration calibration) {
  calibration.made_by = made_by(run, check_calibration(run, calibration));
  calibration.about = "calibrated: factors below 1 come from the null distributions in the cells; the constants are by hand";
  const std::filesystem::path file = folder / (calibration.device + ".json");
  write_file(file, to_text(calibration));
  return file;
}

std::filesystem::path write_check(const std::filesystem::path& folder, const RunData& run, const CalibrationCheck& check) {
  nlohmann::json gates = nlohmann::json::array(), alarms = nlohmann::json::array();
  for (const auto& [key, counts] : check.gates)
    gates.push_back({{"rounds_like", key.first},
                     {"gate", key.second},
                     {"judged", counts.judged},
                     {"no_power", counts.no_power},
                     {"alarms", counts.alarms}});
  for (const auto& alarm : check.alarms)
    alarms.push_back({{"backend", alarm.backend}, {"what", alarm.what}, {"case", alarm.case_line}});
  const nlohmann::json content{{"made_by", made_by(run, check)},
                               {"cases", check.cases},
                               {"tensors", check.tensors},
                               {"results", check.results},
                               {"without_power", check.without_power},
                               {"backends", check.backends},
                               {"gates", gates},
                               {"alarms", alarms}};
  const std::filesystem::path file = folder / "check.json";
  write_file(file, content.dump(1) + "\n");
  return file;
}

GateResult conclude(const CalibrationCheck& check) {
  const std::string counts = fmt::format("{} distinct tensors of {} cases, {} results of {} backends", check.tensors, check.cases,
                                         check.results, check.backends.size());
  if (!check.alarms.empty())
    return {kExitGate,
            fmt::format("FAILED: {} of correct implementations accused: {}",
                        check.alarms.size() == 1 ? "1 record" : fmt::format("{} records", check.alarms.size()), counts)};
  if (check.results == 0) return {kExitInfrastructure, "nothing was judged"};
  return {kExitOk, "passed: no false alarm: " + counts};
}

}  // namespace attnbench
