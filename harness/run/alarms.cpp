#include "harness/run/alarms.hpp"

#include <utility>

namespace attnbench {
namespace {

using Sign = std::pair<const char*, const char*>;  // what a reason says, and the alarm that it means

/// The sentences of attempt.cpp, watched_run.cpp, process_state.cpp and verdict_report.cpp in harness/worker; the first that
/// fits counts: what a second call did to memory is told as that, not as a difference.
constexpr Sign kSigns[] = {
    {"wrote to its input", "input"},
    {" bytes past the end of ", "memory"},
    {" bytes before the start of ", "memory"},
    {"lies in the memory of", "borrowed"},
    {" to LibTorch, which had ", "state"},
    {"left the recording of gradients", "state"},
    {"left the processor with another rounding", "state"},
    {" is missing from the outputs", "form"},
    {" has the shape [", "form"},
    {" has the dtype ", "form"},
    {", expected on ", "form"},
    {"called again with ", "repeat"},
    {"gave another result", "repeat"},
    {"judged again after timing", "repeat"},
};

/// How a run ended that has no verdict, by the coordinator's sentences (they quote the worker's log, so they come first).
constexpr Sign kEnds[] = {
    {"the worker was killed after ", "hang"},
    {"the worker was killed because it did not keep to the protocol", "protocol"},
    {"the worker ended the request without a result", "protocol"},
    {"the worker ", "crash"},
};

std::string sign_in(const std::string& reason) {
  for (const auto& [text, alarm] : kSigns)
    if (reason.find(text) != std::string::npos) return alarm;
  return "";
}

std::string end_in(const std::string& reason) {
  for (const auto& [text, alarm] : kEnds)
    if (reason.starts_with(text)) return alarm;
  const std::string sign = sign_in(reason);
  return sign.empty() ? "exception" : sign;
}

}  // namespace

std::string text_of(const Alarm& alarm) {
  return alarm.tensor.empty() ? alarm.gate : alarm.gate + " " + alarm.tensor;
}

std::set<Alarm> alarms_of(const Record& record) {
  std::set<Alarm> alarms;
  if (record.status != Status::failed && record.status != Status::error) return alarms;
  for (const auto& [tensor, errors] : record.errors)
    for (const auto& [gate, outcome] : errors.gates)
      if (outcome.verdict == Gate::Verdict::fail) alarms.insert({gate, tensor});
  const std::string watch = record.status == Status::error ? end_in(record.reason) : sign_in(record.reason);
  if (!watch.empty()) alarms.insert({watch, ""});
  if (alarms.empty()) alarms.insert({"other", ""});
  return alarms;
}

}  // namespace attnbench
