#include "harness/run/recorder.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "harness/run/gate.hpp"
#include "harness/run/planted.hpp"

namespace attnbench {

Recorder::Recorder(RunFolder& folder, Progress& progress, const std::vector<Declaration>& backends,
                   std::vector<std::string> gated)
    : folder_(folder), progress_(progress), backends_(backends), gated_(std::move(gated)) {}

bool Recorder::is_gated(const Record& record) const {
  return std::ranges::find(gated_, record.backend) != gated_.end();
}

void Recorder::take(const Record& record) {
  folder_.append(to_line(record));
  progress_.count();
  if (is_red(record, backends_)) {
    if (is_gated(record)) {
      progress_.count_failure(record);
      red_.push_back(record);
    } else if (!is_planted(record.backend)) {  // what it is there for
      progress_.count_finding();
    }
  }
  tick();
}

void Recorder::take(const Comparison& comparison) {
  folder_.append(to_line(comparison));
}

void Recorder::on_stage(const PlannedCase& planned, const Stage& stage) {
  progress_.working_on(fmt::format("{} {}: {}: {}", stage.backend, name_of(stage.pass), stage.stage, planned.case_line));
  tick();
}

void Recorder::tick() {
  folder_.sync_if_due();
  progress_.tick();
}

}  // namespace attnbench
