#include "harness/run/fuzz.hpp"

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/errors.hpp"
#include "harness/run/files.hpp"
#include "harness/run/gate.hpp"
#include "harness/run/progress.hpp"
#include "harness/run/random_case.hpp"
#include "harness/run/recorder.hpp"
#include "harness/run/shrink_record.hpp"

namespace attnbench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kSuite = "fuzz";
constexpr int64_t kBatch = 64;  // of --minutes: what is found is shrunk after each

/// One red result, and the smallest case that was red in the same way; unset: not shrunk yet, or the others of its kind were
/// too many.
struct Finding {
  uint64_t number = 0;
  Record found;
  bool one_too_many = false;
  std::optional<ShrunkRecord> shrunk;
};

/// Findings that tell the same story: of one backend, pass and status, and shrunk to one case, not red again, or not shrunk.
using Story = std::vector<const Finding*>;

std::string story_key(const Finding& finding) {
  const Record& found = finding.found;
  const std::string left = finding.one_too_many        ? "one too many"
                           : !finding.shrunk           ? "not shrunk yet"
                           : finding.shrunk->red_alone ? finding.shrunk->smallest.case_line
                                                       : "not red again";
  return fmt::format("{} {} {} {}", found.backend, name_of(found.pass), name_of(found.status), left);
}

/// In the order of their first findings.
std::vector<Story> stories_of(const std::vector<Finding>& findings) {
  std::vector<Story> stories;
  for (const Finding& finding : findings) {
    const auto same = [&](const Story& story) { return story_key(*story.front()) == story_key(finding); };
    const auto story = std::ranges::find_if(stories, same);
    if (story == stories.end())
      stories.push_back({&finding});
    else
      story->push_back(&finding);
  }
  return stories;
}

std::string code_block(const std::string& text) {
  return fmt::format("```\n{}\n```\n", text);
}

/// "## flash_varlen backward: failed, 3 cases"
std::string heading_of(const Story& story) {
  const Record& found = story.front()->found;
  return fmt::format("## {} {}: {}, {} case{}\n\n", found.backend, name_of(found.pass), name_of(found.status), story.size(),
                     story.size() == 1 ? "" : "s");
}

std::string numbers_of(const Story& story) {
  std::vector<uint64_t> numbers;
  for (const Finding* finding : story) numbers.push_back(finding->number);
  return fmt::format("{}", fmt::join(numbers, ", "));
}

std::string list_of(const Story& story) {
  std::string text;
  for (const Finding* finding : story)
    text += fmt::format("number {}: {}\n\n{}\n", finding->number, finding->found.reason, code_block(finding->found.repro));
  return text;
}

std::string text_of(const Story& story) {
  const Finding& first = *story.front();
  if (first.one_too_many)
    return heading_of(story) + fmt::format("Not shrunk: {} others of this backend and pass are.\n\n", kMostShrunk) +
           list_of(story);
  if (!first.shrunk) return heading_of(story) + "Not shrunk yet.\n\n" + list_of(story);
  if (!first.shrunk->red_alone) return heading_of(story) + "Not shrunk: not red when run again, alone.\n\n" + list_of(story);
  const Record& smallest = first.shrunk->smallest;
  return heading_of(story) + fmt::format("smallest, after {} tries:\n\n", first.shrunk->tries) + code_block(smallest.case_line) +
         fmt::format("\n{}\n\n", smallest.reason) + code_block(smallest.repro) +
         fmt::format("\nfound as number {}{}:\n\n", numbers_of(story), story.size() == 1 ? "" : "; the first") +
         code_block(first.found.case_line) + fmt::format("\n{}\n", first.found.reason);
}

class Fuzzer {
 public:
  Fuzzer(RunFolder& folder, const FuzzCommand& command, const std::string& run_id, const std::vector<std::string>& arguments)
      : folder_(folder), command_(command), pool_(start_workers(command.worker, folder)), begin_(Clock::now()) {
    fields_.run = run_id;
    fields_.check_only = true;
    gated_ = gated_backends(command.gate, pool_.hello().backends);
    first_ = plan_batch();
    if (first_.empty())
      throw NothingMatched("nothing matched: random cases are of attention, and no backend of that is left after --backend");
    header_ = {run_id, named_by_program(arguments), utc_now(), environment_of(pool_, command.selection, command.gate)};
    begin();
  }

  void run() {
    run_batch(first_);
    while (goes_on()) run_batch(plan_batch());
    if (command_.minutes) end();
    pool_.finish();
  }

  /// The text of fuzz.md.
  std::string report() const {
    std::string text = fmt::format("# Fuzz\n\n--seed {}, cases 0 to {}; red results of gated backends: {}\n", command_.seed,
                                   next_ - 1, findings_.size());
    for (const Story& story : stories_of(findings_)) text += "\n" + text_of(story);
    return text;
  }

 private:
  /// The header promises as many results as the run will have. With --minutes only its end tells how many these are: it has a
  /// header of its own, without which the run was cut.
  void begin() const {
    RunHeader header = header_;
    if (command_.minutes)
      header.environment["open_ended"] = true;
    else
      header.environment["runs"] = count_runs(first_);
    folder_.append(to_line(header));
  }
  void end() const {
    RunHeader header = header_;
    header.environment["runs"] = runs_;
    folder_.append(to_line(header));
  }

  bool goes_on() const {
    return command_.minutes && Clock::now() - begin_ < std::chrono::duration<double, std::ratio<60>>(*command_.minutes);
  }

  std::vector<PlannedCase> plan_batch() {
    Suite suite{kSuite, {}};
    const int64_t count = command_.minutes ? kBatch : command_.count;
    for (int64_t i = 0; i < count; ++i) {
      const Case c = random_case(command_.seed, next_);
      if (numbers_.try_emplace(format_case(c), next_).second)
        suite.cases.push_back({.c = c, .where = kSuite, .suite = "", .canaries = {}});
      ++next_;
    }
    return make_plan({suite}, command_.selection, pool_.hello().backends, pool_.hello().device);
  }

  void run_batch(const std::vector<PlannedCase>& plan) {
    std::vector<Record> red;
    runs_ += count_runs(plan);
    {
      Progress progress(stderr, count_runs(plan));
      Recorder recorder(folder_, progress, pool_.hello().backends, gated_);
      pool_.run(plan, fields_, recorder);
      red = recorder.red();
    }
    // Several workers answer in any order.
    std::ranges::stable_sort(red, {}, [&](const Record& record) { return numbers_.at(record.case_line); });
    const size_t known = findings_.size();
    for (const Record& record : red) {
      const bool one_too_many = ++red_runs_[{record.backend, record.pass}] > kMostShrunk;
      findings_.push_back({numbers_.at(record.case_line), record, one_too_many, std::nullopt});
    }
    write_report();
    for (size_t i = known; i < findings_.size(); ++i) {
      if (findings_[i].one_too_many) continue;
      shrink(findings_[i]);
      write_report();
    }
  }

  void shrink(Finding& finding) {
    finding.shrunk = RecordShrinker(pool_, fields_, are_red_alike, [this] { folder_.sync_if_due(); }).shrink(finding.found);
    if (finding.shrunk->red_alone)
      fmt::print(stderr, "smallest, after {} tries: {}\n", finding.shrunk->tries, finding.shrunk->smallest.repro);
  }

  void write_report() const { write_file(folder_.path() / kFuzzFile, report()); }

  RunFolder& folder_;
  const FuzzCommand& command_;
  WorkerPool pool_;
  const Clock::time_point begin_;
  RunFields fields_;
  RunHeader header_;
  size_t runs_ = 0;  ///< of the batches so far
  std::vector<std::string> gated_;
  uint64_t next_ = 0;                        ///< number of the next case
  std::map<std::string, uint64_t> numbers_;  ///< of the cases so far, by their lines
  std::vector<PlannedCase> first_;
  std::map<std::pair<std::string, Pass>, int> red_runs_;
  std::vector<Finding> findings_;
};

}  // namespace

FuzzOutcome fuzz(const FuzzCommand& command, const std::vector<std::string>& arguments) {
  const std::string run_id = make_run_id(kSuite);
  FuzzOutcome outcome;
  outcome.run = write_run(create_run(command.out, run_id), [&](RunFolder& folder) {
    Fuzzer fuzzer(folder, command, run_id, arguments);
    fuzzer.run();
    outcome.findings = fuzzer.report();
  });
  return outcome;
}

}  // namespace attnbench
