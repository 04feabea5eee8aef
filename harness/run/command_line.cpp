#include "harness/run/command_line.hpp"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include "harness/run/case_limits.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/nearest.hpp"
#include "harness/run/planted.hpp"

namespace attnbench {
namespace {

constexpr const char* kRunExamples = R"(
Examples:
  attnbench --suite smoke                          a minute: does everything here compute attention?
  attnbench --suite full --out runs/mine           all suites; results.jsonl, summary.md, … in runs/mine
  attnbench --resume runs/mine                     goes on where a run was interrupted
  attnbench --case "attention hq=4 lq=512 d=64 mask=causal" --backend flash_varlen,eager
  attnbench --suite gradient --filter "backward.*mask=causal"      only what matches
  attnbench --suite perf --filter "-dtype=fp16"    all but what matches
  attnbench --suite full --shard 2/8               the second of eight parts; `attnbench merge` joins them
  attnbench list --suite smoke                     the cases of a suite, one line each
  attnbench selftest                               plants defects in backends: does the judge see them?
  attnbench audit                                  what changes the bits of a result: repeats, batch, padding, threads
  attnbench fuzz --seed 7 --minutes 60             random cases; what fails is shrunk to a small case
  attnbench findings runs/mine --shrink            what is red and why, with the smallest case that shows it
  attnbench calibrate --check                      do the limits accuse correct implementations?
  attnbench support                                which backend can do what on this machine, and why not

Exit codes: 0 passed | 1 a gated backend is wrong | 2 bad option, case or file | 3 no worker, or too little evidence
            4 nothing matched | 77 nothing to judge | 130, 143 interrupted: continue with --resume)";

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

/// Texts as they were typed, before they are checked.
struct TypedOptions {
  std::vector<std::string> backends;
  std::string pass = "both", shard = "1/1", assume_sm, seed = "0", seeds;
};

[[noreturn]] void refuse(const std::string& option, const std::string& got, const std::string& expected) {
  throw UsageError(fmt::format("{} {}: expected {}", option, got, expected));
}

std::optional<int64_t> whole_number(std::string_view text) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return number;
}

uint64_t parse_seed(const std::string& text) {
  uint64_t seed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (error != std::errc() || end != text.data() + text.size()) refuse("--seed", text, "a whole number from 0 to 2^64 - 1");
  return seed;
}

/// "A..B", or one seed.
std::pair<uint64_t, uint64_t> parse_seeds(const std::string& text) {
  constexpr uint64_t kMost = 10000;
  const size_t dots = text.find("..");
  const auto first = whole_number(std::string_view(text).substr(0, dots));
  const auto last = dots == std::string::npos ? first : whole_number(std::string_view(text).substr(dots + 2));
  if (!first || !last || *first < 0 || *last < *first || static_cast<uint64_t>(*last - *first) >= kMost)
    refuse("--seeds", text, fmt::format("one seed or A..B, as in 1..50, with 0 <= A <= B, at most {} of them", kMost));
  return {static_cast<uint64_t>(*first), static_cast<uint64_t>(*last)};
}

Shard parse_shard(const std::string& text) {
  const size_t slash = text.find('/');
  const auto index = whole_number(std::string_view(text).substr(0, slash));
  const auto count = slash == std::string::npos ? std::nullopt : whole_number(std::string_view(text).substr(slash + 1));
  if (!index || !count || *index < 1 || *index > *count) refuse("--shard", text, "I/N with 1 <= I <= N, as in 2/8");
  return {*index, *count};
}

std::optional<Pass> parse_pass(const std::string& text) {
  if (text == "both") return std::nullopt;
  for (Pass pass : {Pass::forward, Pass::backward})
    if (text == name_of(pass)) return pass;
  refuse("--pass", text, "forward, backward or both" + did_you_mean(text, {"forward", "backward", "both"}));
}

std::optional<int> parse_sm(const std::string& text) {
  if (text.empty()) return std::nullopt;
  const size_t dot = text.find('.');
  const auto major = whole_number(std::string_view(text).substr(0, dot));
  const auto minor = dot == std::string::npos ? std::nullopt : whole_number(std::string_view(text).substr(dot + 1));
  if (!major || !minor || *major < 1 || *major > 99 || *minor < 0 || *minor > 9)
    refuse("--assume-sm", text, "a compute capability, as in 7.5");
  return static_cast<int>(*major * 10 + *minor);
}

void check(const WorkerOptions& worker) {
  const std::string& device = worker.device;
  const bool cuda_index = device.starts_with("cuda:") && whole_number(device.substr(5)).value_or(-1) >= 0;
  if (device != "cpu" && device != "cuda" && !cuda_index)
    refuse("--device", device, "cpu, cuda or cuda:N" + did_you_mean(device, {"cpu", "cuda"}));
  constexpr double kLongestTimeout_s = 1e6;
  if (worker.timeout_s && !(*worker.timeout_s > 0 && *worker.timeout_s <= kLongestTimeout_s))
    refuse("--timeout", fmt::format("{}", *worker.timeout_s), "seconds, above 0 and at most a million");
}

void add_worker_options(CLI::App& app, WorkerOptions& worker, const char* usual_device = "a GPU where there is one") {
  app.add_option("--device", worker.device, fmt::format("cpu, cuda or cuda:N [{}]", usual_device))->type_name("DEVICE");
  app.add_option("--worker", worker.command, "command of another worker that speaks the protocol")->type_name("CMD");
  app.add_option("--timeout", worker.timeout_s,
                 "seconds that a worker may be silent, which tells of every step of a case; then it is killed [300, on a GPU 60]")
      ->type_name("S");
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
    refuse("--workers", std::to_string(worker.workers), fmt::format("a number from 1 to {}", kMostWorkers));
  check(worker);
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
    refuse("--repeats", std::to_string(run.audit_repeats), fmt::format("a number from 2 to {}", kMaxRepeats));
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
    refuse("--random", std::to_string(calibrate.random), fmt::format("a number from 0 to {}", kMostRandom));
  calibrate.worker.planted = names_planted(calibrate.selection.backends);
  if (calibrate.worker.planted && !calibrate.check)
    throw UsageError("--backend with a planted defect: limits come from correct implementations alone; try it with --check");
  return calibrate;
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
    refuse("--count", std::to_string(fuzz.count), fmt::format("a number from 1 to {}", kMaxCases));
  if (fuzz.minutes && !(*fuzz.minutes > 0 && *fuzz.minutes <= kLongest_min))
    refuse("--minutes", fmt::format("{}", *fuzz.minutes), "minutes, above 0 and at most a million");
  fuzz.seed = parse_seed(typed.seed);
  fuzz.selection.backends = typed.backends;
  fuzz.worker.planted = names_planted(typed.backends);
  fuzz.selection.pass = parse_pass(typed.pass);
  return fuzz;
}

/// Options and subcommands, and what CLI11 writes into for each.
class Grammar {
 public:
  explicit Grammar(const std::vector<std::string>& report_formats) : report_formats_(report_formats) {
    app_.footer(kRunExamples);
    app_.require_subcommand(0, 1);
    add_run_options(app_, run_, typed_);
    add_audit_options(*audit_app_, audit_, typed_audit_);
    add_selftest_options(*selftest_app_, selftest_);
    add_fuzz_options(*fuzz_app_, fuzz_, typed_fuzz_);
    add_calibrate_options(*calibrate_app_, calibrate_, typed_calibrate_);
    add_list();
    add_support();
    add_merge();
    add_report();
    add_findings();
  }

  /// CLI11 answers --help before it looks at the rest, so a command that is not there is refused first.
  void check_command(const std::string& word) const {
    std::vector<std::string_view> known{"run"};
    for (const CLI::App* command :
         {audit_app_, fuzz_app_, findings_app_, calibrate_app_, list_app_, support_app_, selftest_app_, merge_app_, report_app_})
      known.push_back(command->get_name());
    if (!word.starts_with('-') && std::find(known.begin(), known.end(), word) == known.end())
      throw UsageError(
          fmt::format("unknown command {}{} (commands: {})", word, did_you_mean(word, known), fmt::join(known, ", ")));
  }

  /// Throws CLI::ParseError, CLI::CallForHelp among them.
  void parse(const std::vector<std::string>& arguments) {
    std::vector<std::string> words(arguments.rbegin(), arguments.rend());  // CLI11 takes them from the back
    if (words.back() == "run") words.pop_back();
    app_.parse(words);
  }

  /// What was parsed, checked.
  Command command() const {
    if (*audit_app_) return finish_audit(*audit_app_, audit_, typed_audit_);
    if (*fuzz_app_) return finish_fuzz(*fuzz_app_, fuzz_, typed_fuzz_);
    if (*calibrate_app_) return finish_calibrate(*calibrate_app_, calibrate_, typed_calibrate_);
    if (*list_app_) return list_;
    if (*findings_app_) return finished_findings();
    if (*support_app_) return finished_support();
    if (*selftest_app_) return finish_selftest(*selftest_app_, selftest_);
    if (*merge_app_) return merge_;
    if (*report_app_) return finished_report();
    return finish_run(app_, run_, typed_);
  }

  std::string help() const { return app_.help(); }
  std::string help_of_command() const { return parsed_app().help(); }

  /// The sentence for what CLI11 refused.
  std::string explain(const CLI::ParseError& error, const std::vector<std::string>& arguments) const {
    std::vector<std::string> known;
    for (const CLI::Option* option : parsed_app().get_options())
      for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
    for (const std::string& argument : arguments) {
      const std::string name = argument.substr(0, argument.find('='));
      const bool is_option = name.starts_with("--");
      if (is_option && std::find(known.begin(), known.end(), name) == known.end())
        return fmt::format("unknown option {}{}", name, did_you_mean(name, {known.begin(), known.end()}));
    }
    return error.what();
  }

 private:
  const CLI::App& parsed_app() const {
    const auto commands = app_.get_subcommands();
    return commands.empty() ? app_ : *commands.front();
  }

  void add_list() {
    list_app_->add_option("--suite", list_.suites, "print its cases, one canonical line each")->type_name("NAME|FILE");
    list_app_->add_flag("--explain", list_.explain, "with names, sources and reasons");
  }
  void add_support() {
    support_app_->add_option("--assume-sm", support_sm_, "flag what is unsafe on this compute capability")->type_name("X.Y");
    add_worker_options(*support_app_, support_.worker);
  }
  void add_merge() {
    merge_app_->add_option("runs", merge_.runs, "folders of runs, in any order")->required()->type_name("DIR");
    merge_app_->add_option("--out", merge_.out, "folder of the whole")->required()->type_name("DIR");
  }
  void add_report() {
    report_app_->add_option("run", report_.run, "folder of a run, or its results.jsonl")->required()->type_name("RUN");
    report_app_->add_option("--format", report_.format, fmt::format("{}", fmt::join(report_formats_, ", ")))
        ->type_name("FORMAT")
        ->capture_default_str();
  }

  void add_findings() {
    findings_app_->add_option("run", findings_.run, "folder of a run, or its results.jsonl")->required()->type_name("RUN");
    findings_app_->add_flag("--shrink", findings_.shrink, "run the smallest case of each cause again, smaller and smaller");
    add_worker_options(*findings_app_, findings_.worker, "a GPU where there is one; this and the next two: of --shrink");
  }

  FindingsCommand finished_findings() const {
    for (const char* option : {"--device", "--worker", "--timeout"})
      if (!findings_.shrink && findings_app_->count(option) > 0)
        throw UsageError(fmt::format("findings with {}: nothing is run without --shrink; leave it out", option));
    check(findings_.worker);
    return findings_;
  }
  SupportCommand finished_support() const {
    SupportCommand support = support_;
    check(support.worker);
    support.assume_sm = parse_sm(support_sm_);
    return support;
  }
  ReportCommand finished_report() const {
    const std::vector<std::string_view> known(report_formats_.begin(), report_formats_.end());
    if (std::find(known.begin(), known.end(), report_.format) == known.end())
      refuse("--format", report_.format, fmt::format("{}{}", fmt::join(known, ", "), did_you_mean(report_.format, known)));
    return report_;
  }

  const std::vector<std::string>& report_formats_;
  CLI::App app_{
      "Runs identical attention cases through every backend of this machine, judges outputs and gradients against a\n"
      "float64 oracle, and times only what is right.\n",
      "attnbench"};
  CLI::App* audit_app_ = app_.add_subcommand("audit", "what changes the bits of a result: repeats, batch, padding, threads");
  CLI::App* fuzz_app_ = app_.add_subcommand("fuzz", "judge random cases, and shrink those that a gated backend gets wrong");
  CLI::App* findings_app_ = app_.add_subcommand("findings", "what is red in a run, by cause, and what to do about it");
  CLI::App* calibrate_app_ =
      app_.add_subcommand("calibrate", "limits from the errors of correct implementations, and their check");
  CLI::App* list_app_ = app_.add_subcommand("list", "the suites, or the cases of suites");
  CLI::App* support_app_ = app_.add_subcommand("support", "backends x capabilities on this machine, and every reason why not");
  CLI::App* selftest_app_ = app_.add_subcommand("selftest", "plant defects in backends, and see whether the judge sees them");
  CLI::App* merge_app_ = app_.add_subcommand("merge", "join the parts of a run (--shard) into one");
  CLI::App* report_app_ = app_.add_subcommand("report", "print a run again, from its records alone");
  RunCommand run_, audit_;
  TypedOptions typed_, typed_audit_, typed_fuzz_, typed_calibrate_;
  SelftestCommand selftest_;
  FuzzCommand fuzz_;
  FindingsCommand findings_;
  CalibrateCommand calibrate_;
  ListCommand list_;
  SupportCommand support_;
  std::string support_sm_;
  MergeCommand merge_;
  ReportCommand report_;
};

}  // namespace

Command parse_command_line(const std::vector<std::string>& arguments, const std::vector<std::string>& report_formats) {
  Grammar grammar(report_formats);
  if (arguments.empty()) return HelpCommand{grammar.help(), false};
  grammar.check_command(arguments.front());
  try {
    grammar.parse(arguments);
  } catch (const CLI::CallForHelp&) {
    return HelpCommand{grammar.help_of_command()};
  } catch (const CLI::ParseError& error) {
    throw UsageError(grammar.explain(error, arguments));
  }
  return grammar.command();
}

}  // namespace attnbench
