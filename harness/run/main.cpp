// attnbench: the command line. It alone knows cases, the run and the reports.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "harness/run/calibrate.hpp"
#include "harness/run/command_line.hpp"
#include "harness/run/exit_code.hpp"
#include "harness/run/files.hpp"
#include "harness/run/fuzz.hpp"
#include "harness/run/gate.hpp"
#include "harness/run/interrupt.hpp"
#include "harness/run/list_cases.hpp"
#include "harness/run/merge_runs.hpp"
#include "harness/run/planted.hpp"
#include "harness/run/run_suites.hpp"
#include "harness/run/selftest.hpp"
#include "reports/audit_report.hpp"
#include "reports/calibration_report.hpp"
#include "reports/findings_report.hpp"
#include "reports/selftest_report.hpp"
#include "reports/support.hpp"
#include "reports/write_reports.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;

TextStyle style_of_stdout() {
  TextStyle style;
  if (isatty(STDOUT_FILENO) != 1) return style;
  style.colour = std::getenv("NO_COLOR") == nullptr;
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) style.width = size.ws_col;
  return style;
}

/// Writes the reports beside the records, prints the console's, and answers with the run's exit code.
/// `more`: text to print before the results; `file`: the one that holds it.
int conclude(const fs::path& folder, const std::string& more = "", std::string file = "") {
  write_reports(folder);
  const RunData run = read_run(folder);
  if (file.empty() && has_invariance(run)) file = "audit.md, audit.json";
  const GateResult result = apply_gate(run);
  fmt::print("{}\n{}results: {}/ (results.jsonl, results.csv, summary.md, findings.md, benchmark.json{})\n{}\n",
             render_report(run, "table", style_of_stdout()), more.empty() ? "" : more + "\n", folder.string(),
             file.empty() ? "" : ", " + file, result.sentence);
  return result.exit_code;
}

int execute(const RunCommand& command, const std::vector<std::string>& arguments) {
  catch_interrupts();
  const RunOutcome outcome = run_suites(command, arguments);
  if (!outcome.interrupted) return conclude(outcome.folder);
  if (outcome.folder.empty())
    fmt::print(stderr, "attnbench: interrupted before the run began\n");
  else
    fmt::print(stderr, "attnbench: interrupted; continue with: attnbench --resume {}\n", outcome.folder.string());
  return exit_code_of_signal(*outcome.interrupted);
}

int execute(const AuditCommand& command, const std::vector<std::string>& arguments) {
  catch_interrupts();
  const RunOutcome outcome = run_suites(command.run, arguments);
  if (outcome.interrupted) {
    fmt::print(stderr, "attnbench: interrupted; an audit has to be run again\n");
    return exit_code_of_signal(*outcome.interrupted);
  }
  write_reports(outcome.folder);
  const RunData run = read_run(outcome.folder);
  const GateResult result = apply_gate(run);
  fmt::print("{}\nresults: {}/ (results.jsonl, results.csv, summary.md, findings.md, benchmark.json, audit.md, audit.json)\n{}\n",
             audit_console(run, style_of_stdout()), outcome.folder.string(), result.sentence);
  return result.exit_code;
}

int execute(const SelftestCommand& command, const std::vector<std::string>& arguments) {
  catch_interrupts();
  const std::vector<KnownSurvivor> known = read_known_survivors(command.known);
  const RunOutcome outcome = run_suites(command.run, arguments);
  if (outcome.interrupted) {
    fmt::print(stderr, "attnbench: interrupted; a selftest has to be run again\n");
    return exit_code_of_signal(*outcome.interrupted);
  }
  const RunData run = read_run(outcome.folder);
  const Selftest selftest = evaluate_selftest(run, known);
  write_selftest_reports(outcome.folder, run, selftest);
  const GateResult result = conclude(selftest);
  fmt::print("{}\nresults: {}/ (results.jsonl, selftest.md, selftest.json)\n{}\n", selftest_console(selftest, style_of_stdout()),
             outcome.folder.string(), result.sentence);
  return result.exit_code;
}

int execute(const FuzzCommand& command, const std::vector<std::string>& arguments) {
  catch_interrupts();
  const FuzzOutcome outcome = fuzz(command, arguments);
  if (!outcome.run.interrupted) return conclude(outcome.run.folder, outcome.findings, kFuzzFile);
  if (outcome.run.folder.empty())
    fmt::print(stderr, "attnbench: interrupted before the first case\n");
  else
    fmt::print(stderr, "attnbench: interrupted; what was judged is in {}\n", outcome.run.folder.string());
  return exit_code_of_signal(*outcome.run.interrupted);
}

/// The smallest record of each cause on this device, shrunk.
std::vector<ShrunkRecord> shrink_causes(const std::vector<Cause>& causes, const WorkerOptions& options, const fs::path& log) {
  WorkerPool pool(worker_settings(options, log), 1);
  RunFields fields;
  fields.check_only = true;
  fields.attention = options.attention;
  fields.assume_sm = options.assume_sm;
  const auto are_alike = [](const Record& a, const Record& b) {
    return are_red_alike(a, b) && signature_of(a) == signature_of(b);
  };
  RecordShrinker shrinker(pool, fields, are_alike, [] {});
  std::vector<ShrunkRecord> shrunk;
  for (const Cause& cause : causes) {
    if (cause.smallest->device != device_text(pool.hello().device)) continue;
    shrunk.push_back(shrinker.shrink(*cause.smallest));
    fmt::print(stderr, "{}: {}: {}, after {} tries\n", cause.first().backend, cause.text, shrunk.back().smallest.case_line,
               shrunk.back().tries);
  }
  pool.finish();
  return shrunk;
}

/// Layers of a record that is made again call what they called.
void take_attention_of(const RunHeader& header, WorkerOptions& worker) {
  const nlohmann::json attention = header.environment.value("attention", nlohmann::json());
  const nlohmann::json assume_sm = header.environment.value("assume_sm", nlohmann::json());
  if (attention.is_string()) worker.attention = attention;
  if (assume_sm.is_number_integer()) worker.assume_sm = assume_sm.get<int>();
}

int execute(const FindingsCommand& command, const std::vector<std::string>&) {
  catch_interrupts();
  const RunData run = read_run(command.run);
  const fs::path folder = fs::is_directory(command.run) ? command.run : command.run.parent_path();
  const fs::path file = folder / kFindingsFile;
  std::vector<ShrunkRecord> shrunk;
  WorkerOptions worker = command.worker;
  if (!run.headers.empty()) take_attention_of(run.headers.front(), worker);
  worker.planted = std::ranges::any_of(run.records, [](const Record& record) { return is_planted(record.backend); });
  if (command.shrink) shrunk = shrink_causes(causes_of(run), worker, folder / "worker.log");
  write_file(file, findings_markdown(run, shrunk));
  fmt::print("{}", causes_console(run, style_of_stdout()));
  fmt::print("results: {}\n", file.string());
  return kExitOk;
}

int execute(const CalibrateCommand& command, const std::vector<std::string>& arguments) {
  catch_interrupts();
  const Calibration before = calibration_in_force(command);
  const RunOutcome outcome = command.from.empty() ? run_calibration(command, arguments) : RunOutcome{command.from, std::nullopt};
  if (outcome.interrupted) {
    fmt::print(stderr, "attnbench: interrupted; a calibration has to be run again\n");
    return exit_code_of_signal(*outcome.interrupted);
  }
  const RunData run = read_run(outcome.folder);
  if (command.check) {
    const CalibrationCheck check = check_calibration(run, before);
    const GateResult result = conclude(check);
    const fs::path file = write_check(outcome.folder, run, check);
    fmt::print("{}\nresults: {} (beside it results.jsonl)\n{}\n", check_console(check, style_of_stdout()), file.string(),
               result.sentence);
    return result.exit_code;
  }
  const Calibration after = calibrate(run, before);
  const fs::path file = write_calibration(outcome.folder, run, after);
  fmt::print("{}\nresults: {} (beside it results.jsonl)\nto judge by it: cp {} {}\n",
             calibration_console(after, style_of_stdout()), file.string(), file.string(),
             calibration_file(after.device).string());
  return kExitOk;
}

int execute(const ListCommand& command, const std::vector<std::string>&) {
  fmt::print("{}", command.suites.empty() ? list_suites() : list_cases(load_cases(command.suites, {}), command.explain));
  return kExitOk;
}

int execute(const SupportCommand& command, const std::vector<std::string>&) {
  catch_interrupts();
  const fs::path log = fs::temp_directory_path() / fmt::format("attnbench-support-{}.log", getpid());
  struct RemoveLog {
    fs::path path;
    ~RemoveLog() {
      std::error_code ignored;
      fs::remove(path, ignored);
    }
  } remove_log{log};
  Coordinator coordinator(worker_settings(command.worker, log));
  fmt::print("{}", support_report(coordinator.hello(), command.assume_sm, style_of_stdout()));
  coordinator.finish();
  return kExitOk;
}

int execute(const MergeCommand& command, const std::vector<std::string>&) {
  merge_runs(command.runs, command.out);
  return conclude(command.out);
}

int execute(const ReportCommand& command, const std::vector<std::string>&) {
  fmt::print("{}\n", render_report(read_run(command.run), command.format, style_of_stdout()));
  return kExitOk;
}

int execute(const HelpCommand& help, const std::vector<std::string>&) {
  fmt::print(help.asked_for ? stdout : stderr, "{}\n", help.text);
  return help.asked_for ? kExitOk : kExitUsage;
}

/// Every sentence that ends a command comes through here.
int run_main(const std::vector<std::string>& arguments) {
  try {
    const std::vector<std::string> words(arguments.begin() + 1, arguments.end());
    const Command command = parse_command_line(words, report_formats());
    return std::visit([&](const auto& alternative) { return execute(alternative, arguments); }, command);
  } catch (...) {
    const CommandEnd end = end_of_command(std::current_exception());
    if (!end.sentence.empty()) fmt::print(stderr, "attnbench: {}\n", end.sentence);
    return end.exit_code;
  }
}

}  // namespace
}  // namespace attnbench

int main(int argc, char** argv) {
  return attnbench::run_main({argv, argv + argc});
}
