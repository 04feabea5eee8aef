#include "harness/run/shrink_record.hpp"

#include <algorithm>
#include <optional>
#include <utility>

#include "harness/run/alarms.hpp"
#include "harness/run/case_keys.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/gate.hpp"
#include "harness/run/shrink.hpp"

namespace attnbench {
namespace {

using Clock = std::chrono::steady_clock;

/// Keeps the record of a single run.
class OneRecord : public ResultSink {
 public:
  explicit OneRecord(const std::function<void()>& tick) : tick_(tick) {}
  void take(const Record& record) override { record_ = record; }
  void take(const Comparison&) override {}
  void on_stage(const PlannedCase&, const Stage&) override {}
  void tick() override { tick_(); }
  const std::optional<Record>& record() const { return record_; }

 private:
  const std::function<void()>& tick_;
  std::optional<Record> record_;
};

}  // namespace

bool are_red_alike(const Record& a, const Record& b) {
  const auto kind = [](const Record& record) { return record.status == Status::error ? Status::failed : record.status; };
  const auto has_nonfinite = [](const Record& record) {
    return std::ranges::any_of(alarms_of(record), [](const Alarm& alarm) { return alarm.gate == "nonfinite"; });
  };
  return kind(a) == kind(b) && (a.status == Status::error || b.status == Status::error || has_nonfinite(a) == has_nonfinite(b));
}

RecordShrinker::RecordShrinker(WorkerPool& pool, RunFields fields, AreAlike are_alike, std::function<void()> tick)
    : pool_(pool), fields_(std::move(fields)), are_alike_(std::move(are_alike)), tick_(std::move(tick)) {}

Record RecordShrinker::run_alone(const Case& c, const Record& like) {
  OneRecord sink(tick_);
  try {
    const PlannedCase alone{
        .c = c, .case_line = format_case(c), .suite = like.suite, .case_suite = "", .runs = {{like.backend, like.pass}}};
    pool_.run_case(alone, fields_, sink);
  } catch (const InfrastructureError&) {
    // One case in a row of others that no worker lives to begin with: for a run the end, here what is being shrunk.
    if (!sink.record()) throw;
  }
  return sink.record().value();
}

ShrunkRecord RecordShrinker::shrink(const Record& found) {
  ShrunkRecord shrunk{found, found, 0, true};
  const Clock::time_point deadline = Clock::now() + kLongest;
  const auto still_fails = [&](const Case& c) {
    if (Clock::now() >= deadline) return false;
    ++shrunk.tries;
    const Record record = run_alone(c, found);
    const bool fails = is_red(record, pool_.hello().backends) && are_alike_(found, record);
    if (fails) shrunk.smallest = record;
    return fails;
  };
  const Case c = case_with_terms(found.case_line, found.terms);
  shrunk.red_alone = still_fails(c);
  if (shrunk.red_alone) attnbench::shrink(c, still_fails);
  return shrunk;
}

}  // namespace attnbench
