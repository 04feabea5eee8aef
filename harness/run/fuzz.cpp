#include "harness/run/fuzz.hpp"

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>

#include <fmt/format.h>

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

/// One red result, and the smallest case that was red in the same way; unset: the others of its kind were too many.
struct Finding {
  uint64_t number = 0;
  Record found;
  std::optional<ShrunkRecord> shrunk;
};

std::string text_of(const Finding& finding) {
  const Record& found = finding.found;
  const std::string text = fmt::format("## {} {}: {}\n\nfound as number {}:\n\n```\n{}\n```\n\n{}\n\n", found.backend,
                                       name_of(found.pass), name_of(found.status), finding.number, found.case_line, found.reason);
  if (!finding.shrunk)
    return text + fmt::format("Not shrunk: {} others of this backend and pass are.\n\n```\n{}\n```\n", kMostShrunk, found.repro);
  if (!finding.shrunk->red_alone)
    return text + fmt::format("Run again, alone, it was not red: not shrunk.\n\n```\n{}\n```\n", found.repro);
  const Record& smallest = finding.shrunk->smallest;
  return text + fmt::format("smallest, after {} tries, {}:\n\n```\n{}\n```\n\n{}\n\n```\n{}\n```\n", finding.shrunk->tries,
                            name_of(smallest.status), smallest.case_line, smallest.reason, smallest.repro);
}

class Fuzzer {
 public:
  Fuzzer(RunFolder& folder, const FuzzCommand& command, const std::string& run_id, const std::vector<std::string>& arguments)
      : folder_(folder), command_(command), pool_(start_workers(command.worker, folder)), begin_(Clock::now()) {
    fields_.run = run_id;
    fields_.check_only = true;
    gated_ = gated_backends(command.gate, pool_.hello().backends);
    first_ = plan_batch();
    if (first_.empty()) throw NothingMatched("nothing matched: no backend of this device is left after --backend");
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
    for (const Finding& finding : findings_) text += "\n" + text_of(finding);
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
    write_report();
    for (const Record& record : red) {
      findings_.push_back(shrink_record(record));
      write_report();
    }
  }

  Finding shrink_record(const Record& found) {
    Finding finding{numbers_.at(found.case_line), found, std::nullopt};
    if (++red_runs_[{found.backend, found.pass}] > kMostShrunk) return finding;
    const auto are_alike = [](const Record& a, const Record& b) { return have_like_status(a, b); };
    finding.shrunk = RecordShrinker(pool_, fields_, are_alike, [this] { folder_.sync_if_due(); }).shrink(found);
    if (finding.shrunk->red_alone)
      fmt::print(stderr, "smallest, after {} tries: {}\n", finding.shrunk->tries, finding.shrunk->smallest.repro);
    return finding;
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
