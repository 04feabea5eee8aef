#include "harness/run/command_options.hpp"

#include <charconv>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "harness/run/case_limits.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/nearest.hpp"
#include "harness/run/planted.hpp"

namespace attnbench {
namespace {

constexpr const char* kAuditExamples = R"(
Examples:
  attnbench audit                                  cases/audit.suite, every backend
  attnbench audit --backend eager --repeats 1000
  attnbench audit --case "attention hq=4 hkv=2 lens=65+17+128 d=64 mask=causal" --gate all

Exit codes: as of a run; a backend that breaks what it declares of its bits is wrong)";

constexpr const char* kSelftestExamples = R"(
Examples:
  attnbench selftest                                           every planted defect
  attnbench selftest --backend flash_varlen                    those of one backend
  attnbench selftest --backend flash_varlen:last_key_dropped   one of them
  attnbench selftest --suite smoke --filter "dtype=fp16"       on other cases

Exit codes: 0 every defect was seen, or is known to survive | 1 one was not, a known one is seen now, or a sound backend was
            accused | 2 bad option, case or file | 3 no worker | 4 nothing matched | 77 no defect could show
            130, 143 interrupted: a selftest has to be run again)";

constexpr const char* kCalibrateExamples = R"(
Examples:
  attnbench calibrate --device cpu                 null distributions and limits, in runs/…/cpu.json
  attnbench calibrate --check --device cpu         on other seeds and shapes: does a limit accuse a correct implementation?
  attnbench calibrate --check --seeds 7 --backend flash_varlen:log2e_short      a defect, which has to be accused

Exit codes: 0 written; --check: no alarm | 1 --check: an alarm | 2 bad option or file | 3 no worker, or nothing was judged
            4 no backend | 130, 143 interrupted)";

std::optional<int64_t> whole_number(std::string_view text) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return number;
}

uint64_t parse_seed(const std::string& text) {
  uint64_t seed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (error != std::errc() || end != text.data() + text.size())
    refuse_option("--seed", text, "a whole number from 0 to 2^64 - 1");
  return seed;
}

/// "A..B", or one seed.
std::pair<uint64_t, uint64_t> parse_seeds(const std::string& text) {
  constexpr uint64_t kMost = 10000;
  const size_t dots = text.find("..");
  const auto first = whole_number(std::string_view(text).substr(0, dots));
  const auto last = dots == std::string::npos ? first : whole_number(std::string_view(text).substr(dots + 2));
  if (!first || !last || *first < 0 || *last < *first || static_cast<uint64_t>(*last - *first) >= kMost)
    refuse_option("--seeds", text, fmt::format("one seed or A..B, as in 1..50, with 0 <= A <= B, at most {} of them", kMost));
  return {static_cast<uint64_t>(*first), static_cast<uint64_t>(*last)};
}

Shard parse_shard(const std::string& text) {
  const size_t slash = text.find('/');
  const auto index = whole_number(std::string_view(text).substr(0, slash));
  const auto count = slash == std::string::npos ? std::nullopt : whole_number(std::string_view(text).substr(slash + 1));
  if (!index || !count || *index < 1 || *index > *count) refuse_option("--shard", text, "I/N with 1 <= I <= N, as in 2/8");
  return {*index, *count};
}

std::optional<Pass> parse_pass(const std::string& text) {
  if (text == "both") return std::nullopt;
  for (Pass pass : {Pass::forward, Pass::backward})
    if (text == name_of(pass)) return pass;
  refuse_option("--pass", text, "forward, backward or both" + did_you_mean(text, {"forward", "backward", "both"}));
}

constexpr int kMostWorkers = 64;

void add_workers_option(CLI::App& app, WorkerOptions& worker) {
  app.add_option("--workers", worker.workers,
                 "on a GPU: workers that judge at once; a case that is timed has the GPU to itself [one for every 2 cores and 16 "
                 "GiB of its memory, at most 8]")
      ->type_name("N");
}

void check_workers(const CLI::App& app, const WorkerOptions& worker) {
  if (app.count("--workers") > 0 && (worker.workers < 1 || worker.workers > kMostWorkers))
    refuse_option("--workers", std::to_string(worker.workers), fmt::format("a number from 1 to {}", kMostWorkers));
  check_worker(worker);
}

/// What every command takes that judges cases.
void add_judging_options(CLI::App& app, TypedOptions& typed, std::string& gate, WorkerOptions& worker) {
  app.add_option("--backend", typed.backends, "only these (a,b,…)")->delimiter(',')->type_name("LIST");
  app.add_option("--pass", typed.pass, "forward, backward or both")->type_name("PASS")->capture_default_str();
  app.add_option("--gate", gate, "backends that decide the exit code: NAME,…, all or none [the project's own]")
      ->type_name("LIST");
  add_workers_option(app, worker);
  add_worker_options(app, worker);
}

void add_filter_option(CLI::App& app, std::string& filter) {
  app.add_option(
         "--filter", filter,
         "regular expression over \"backend pass case\", the case as `list` prints it, without defaults; a leading '-' excludes")
      ->type_name("REGEX");
}

/// What is in the layers, for commands whose cases may be of llama.
void add_attention_option(CLI::App& app, WorkerOptions& worker) {
  app.add_option("--attention", worker.attention,
                 "what computes the attention of the layers of llama: a backend, or auto, which picks one that is safe")
      ->type_name("NAME")
      ->capture_default_str();
}

/// What a --resume may not say, since it is known from the run.
void check_resume(const CLI::App& app, const RunCommand& run) {
  if (run.resume.empty()) return;
  for (const char* option : {"--suite", "--case", "--backend", "--pass", "--filter", "--attention", "--shard", "--check-only",
                             "--assume-sm", "--device"})
    if (app.count(option) > 0)
      throw UsageError(
          fmt::format("--resume {}: continues with the options of the run; leave out {}", run.resume.string(), option));
}

}  // namespace

[[noreturn]] void refuse_option(const std::string& option, const std::string& got, const std::string& expected) {
  throw UsageError(fmt::format("{} {}: expected {}", option, got, expected));
}

std::optional<int> parse_sm(const std::string& text) {
  if (text.empty()) return std::nullopt;
  const size_t dot = text.find('.');
  const auto major = whole_number(std::string_view(text).substr(0, dot));
  const auto minor = dot == std::string::npos ? std::nullopt : whole_number(std::string_view(text).substr(dot + 1));
  if (!major || !minor || *major < 1 || *major > 99 || *minor < 0 || *minor > 9)
    refuse_option("--assume-sm", text, "a compute capability, as in 7.5");
  return static_cast<int>(*major * 10 + *minor);
}

void check_worker(const WorkerOptions& worker) {
  const std::string& device = worker.device;
  const bool cuda_index = device.starts_with("cuda:") && whole_number(device.substr(5)).value_or(-1) >= 0;
  if (device != "cpu" && device != "cuda" && !cuda_index)
    refuse_option("--device", device, "cpu, cuda or cuda:N" + did_you_mean(device, {"cpu", "cuda"}));
  constexpr double kLongestTimeout_s = 1e6;
  if (worker.timeout_s && !(*worker.timeout_s > 0 && *worker.timeout_s <= kLongestTimeout_s))
    refuse_option("--timeout", fmt::format("{}", *worker.timeout_s), "seconds, above 0 and at most a million");
}

void add_worker_options(CLI::App& app, WorkerOptions& worker, const char* usual_device) {
  app.add_option("--device", worker.device, fmt::format("cpu, cuda or cuda:N [{}]", usual_device))->type_name("DEVICE");
  app.add_option("--worker", worker.command, "command of another worker that speaks the protocol")->type_name("CMD");
  app.add_option("--timeout", worker.timeout_s,
                 "seconds that a worker may be silent, which tells of every step of a case; then it is killed [300, on a GPU 60]")
      ->type_name("S");
}

void add_run_options(CLI::App& app, RunCommand& run, TypedOptions& typed) {
  app.add_option("--suite", run.suites, "names or files; attnbench list shows them")->type_name("NAME|FILE");
  app.add_option("--case", run.cases, "a case, as the suites write it")->type_name("LINE");
  add_judging_options(app, typed, run.gate, run.worker);
  add_filter_option(app, run.selection.filter);
  add_attention_option(app, run.worker);
  app.add_option("--shard", typed.shard, "only part I of N")->type_name("I/N");
  app.add_flag("--check-only", run.check_only, "judge, do not measure");
  app.add_option("--out", run.out, "folder of the results [runs/<date>-<time>-<suite>]")->type_name("DIR");
  app.add_option("--resume", run.resume, "go on with the run in this folder; alone, with its own options")->type_name("DIR");
  app.add_option("--dump", run.dump, "folder for what cases of attention were given, computed and expected, as .npy files")
      ->type_name("DIR");
  app.add_option("--assume-sm", typed.assume_sm, "flag what is unsafe on this compute capability")->type_name("X.Y");
}

void add_audit_options(CLI::App& app, RunCommand& audit, TypedOptions& typed) {
  constexpr int64_t kUsualRepeats = 100;
  audit.audit_repeats = kUsualRepeats;
  app.add_option("--suite", audit.suites, "names or files [audit]")->type_name("NAME|FILE");
  app.add_option("--case", audit.cases, "a case, as the suites write it")->type_name("LINE");
  app.add_option("--repeats", audit.audit_repeats, "calls that are held against the first one")
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--out", audit.out, "folder of the results [runs/<date>-<time>-audit]")->type_name("DIR");
  add_judging_options(app, typed, audit.gate, audit.worker);
  add_filter_option(app, audit.selection.filter);
  add_attention_option(app, audit.worker);
  app.footer(kAuditExamples);
}

AuditCommand finish_audit(const CLI::App& app, RunCommand run, const TypedOptions& typed) {
  check_workers(app, run.worker);
  if (run.audit_repeats < 2 || run.audit_repeats > kMaxRepeats)
    refuse_option("--repeats", std::to_string(run.audit_repeats), fmt::format("a number from 2 to {}", kMaxRepeats));
  if (run.suites.empty() && run.cases.empty()) run.suites = {"audit"};
  run.check_only = true;
  run.selection.backends = typed.backends;
  run.worker.planted = names_planted(typed.backends);
  run.selection.pass = parse_pass(typed.pass);
  return {run};
}

void add_selftest_options(CLI::App& app, SelftestCommand& selftest) {
  RunCommand& run = selftest.run;
  app.add_option("--suite", run.suites, "names or files [defects]")->type_name("NAME|FILE");
  app.add_option("--backend", run.selection.backends, "only these (a,b,…): real backends, or planted ones as BACKEND:DEFECT")
      ->delimiter(',')
      ->type_name("LIST");
  add_filter_option(app, run.selection.filter);
  add_workers_option(app, run.worker);
  app.add_option("--out", run.out, "folder of the results [runs/<date>-<time>-selftest]")->type_name("DIR");
  app.add_option("--known", selftest.known, "pairs that are known to survive [cases/known_survivors.json]")->type_name("FILE");
  add_worker_options(app, run.worker, "cpu");
  app.footer(kSelftestExamples);
}

SelftestCommand finish_selftest(const CLI::App& app, SelftestCommand selftest) {
  RunCommand& run = selftest.run;
  check_workers(app, run.worker);
  if (app.count("--device") == 0) run.worker.device = "cpu";  // every defect, and the same answer on every machine
  if (run.suites.empty()) run.suites = {"defects"};
  run.selftest = run.check_only = run.worker.planted = true;
  return selftest;
}

void add_fuzz_options(CLI::App& app, FuzzCommand& fuzz, TypedOptions& typed) {
  app.add_option("--seed", typed.seed, "the same seed draws the same cases on every machine")
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--count", fuzz.count, "cases")->type_name("N")->capture_default_str();
  app.add_option("--minutes", fuzz.minutes, "draw cases until these are over, instead of a count")->type_name("M");
  app.add_option("--out", fuzz.out, "folder of the results [runs/<date>-<time>-fuzz]")->type_name("DIR");
  add_judging_options(app, typed, fuzz.gate, fuzz.worker);
}

void add_calibrate_options(CLI::App& app, CalibrateCommand& calibrate, TypedOptions& typed) {
  app.add_flag("--check", calibrate.check, "judge by the limits in force, on other seeds and shapes, and count alarms");
  app.add_option("--suite", calibrate.suite, "name or file [calibration; with --check: calibration_check]")
      ->type_name("NAME|FILE");
  app.add_option("--seeds", typed.seeds, "seeds of each of its cases [1..50; with --check: 2001..2050]")->type_name("A..B");
  app.add_option("--random", calibrate.random, "random cases beside each seed")->type_name("N")->capture_default_str();
  app.add_option("--backend", calibrate.selection.backends, "only these (a,b,…) [those that the calibration names]")
      ->delimiter(',')
      ->type_name("LIST");
  app.add_option("--from", calibrate.from, "judge nothing: count the records of this calibration's run anew")->type_name("RUN");
  add_workers_option(app, calibrate.worker);
  app.add_option("--out", calibrate.out, "folder of the results [runs/<date>-<time>-calibration]")->type_name("DIR");
  add_worker_options(app, calibrate.worker);
  app.footer(kCalibrateExamples);
}

CalibrateCommand finish_calibrate(const CLI::App& app, CalibrateCommand calibrate, const TypedOptions& typed) {
  constexpr int64_t kMostRandom = 10000;
  check_workers(app, calibrate.worker);
  if (!calibrate.from.empty())
    for (const char* option : {"--check", "--suite", "--seeds", "--random", "--backend", "--out"})
      if (app.count(option) > 0) throw UsageError(fmt::format("--from with {}: the run has its own; leave it out", option));
  if (calibrate.suite.empty()) calibrate.suite = calibrate.check ? "calibration_check" : "calibration";
  calibrate.seeds = parse_seeds(!typed.seeds.empty() ? typed.seeds : calibrate.check ? "2001..2050" : "1..50");
  if (calibrate.random < 0 || calibrate.random > kMostRandom)
    refuse_option("--random", std::to_string(calibrate.random), fmt::format("a number from 0 to {}", kMostRandom));
  calibrate.worker.planted = names_planted(calibrate.selection.backends);
  if (calibrate.worker.planted && !calibrate.check)
    throw UsageError("--backend with a planted defect: limits come from correct implementations alone; try it with --check");
  return calibrate;
}

RunCommand finish_run(const CLI::App& app, RunCommand run, const TypedOptions& typed) {
  check_workers(app, run.worker);
  if (!run.out.empty() && !run.resume.empty())
    throw UsageError("--out with --resume: a resumed run stays in its folder; give one of them");
  if (run.suites.empty() && run.cases.empty() && run.resume.empty())
    throw UsageError("nothing to run: give --suite NAME, --case LINE or --resume DIR (attnbench --help shows examples)");
  check_resume(app, run);
  run.selection.backends = typed.backends;
  run.worker.planted = names_planted(typed.backends);
  run.selection.pass = parse_pass(typed.pass);
  run.selection.shard = parse_shard(typed.shard);
  run.assume_sm = run.worker.assume_sm = parse_sm(typed.assume_sm);
  return run;
}

FuzzCommand finish_fuzz(const CLI::App& app, FuzzCommand fuzz, const TypedOptions& typed) {
  constexpr double kLongest_min = 1e6;
  check_workers(app, fuzz.worker);
  if (app.count("--count") > 0 && fuzz.minutes) throw UsageError("--count with --minutes: give one of them");
  if (fuzz.count < 1 || fuzz.count > kMaxCases)
    refuse_option("--count", std::to_string(fuzz.count), fmt::format("a number from 1 to {}", kMaxCases));
  if (fuzz.minutes && !(*fuzz.minutes > 0 && *fuzz.minutes <= kLongest_min))
    refuse_option("--minutes", fmt::format("{}", *fuzz.minutes), "minutes, above 0 and at most a million");
  fuzz.seed = parse_seed(typed.seed);
  fuzz.selection.backends = typed.backends;
  fuzz.worker.planted = names_planted(typed.backends);
  fuzz.selection.pass = parse_pass(typed.pass);
  return fuzz;
}

}  // namespace attnbench
