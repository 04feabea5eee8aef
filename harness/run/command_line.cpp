#include "harness/run/command_line.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/command_options.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/nearest.hpp"

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
    check_worker(findings_.worker);
    return findings_;
  }
  SupportCommand finished_support() const {
    SupportCommand support = support_;
    check_worker(support.worker);
    support.assume_sm = parse_sm(support_sm_);
    return support;
  }
  ReportCommand finished_report() const {
    const std::vector<std::string_view> known(report_formats_.begin(), report_formats_.end());
    if (std::find(known.begin(), known.end(), report_.format) == known.end())
      refuse_option("--format", report_.format, fmt::format("{}{}", fmt::join(known, ", "), did_you_mean(report_.format, known)));
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
