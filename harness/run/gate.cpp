#include "harness/run/gate.hpp"

#include <algorithm>
#include <iterator>
#include <set>
#include <sstream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/errors.hpp"
#include "harness/run/nearest.hpp"
#include "harness/run/planted.hpp"
#include "harness/run/selftest.hpp"

namespace attnbench {
namespace {

std::string device_kind(const Record& record) {
  return record.device.substr(0, record.device.find(':'));
}

/// Unsupported, although the case lies inside what the backend declares. A planted one may be: where its defect cannot show.
bool breaks_its_declaration(const Record& record, const std::vector<Declaration>& backends) {
  if (record.status != Status::unsupported || is_planted(record.backend)) return false;
  const Declaration* declaration = find_declaration(backends, record.backend);
  if (!declaration) return true;  // no declaration excuses it
  // A layer declines by itself, and for its attention, which is held to its own declaration; that no suite loses a case so is
  // seen by its expected counts.
  if (declaration->operation == "llama") return false;
  Device device;
  device.kind = device_kind(record);
  device.sm = record.sm;
  return !why_not(*declaration, parse_case(record.case_line, "record"), record.pass, device);
}

}  // namespace

std::vector<std::string> gated_backends(const std::string& choice, const std::vector<Declaration>& backends) {
  std::vector<std::string> gated;
  if (choice.empty() || choice == "all") {
    for (const Declaration& declaration : backends)
      if (choice == "all" || declaration.ours) gated.push_back(declaration.name);
    return gated;
  }
  if (choice == "none") return gated;
  std::vector<std::string_view> known{"all", "none"};
  for (const Declaration& declaration : backends) known.push_back(declaration.name);
  std::istringstream names(choice);
  for (std::string name; std::getline(names, name, ',');) {
    if (name == "all" || name == "none" || std::find(known.begin(), known.end(), name) == known.end())
      throw UsageError(fmt::format("--gate {}: no such backend: '{}'{}; expected all, none or some of {}", choice, name,
                                   did_you_mean(name, known), fmt::join(known.begin() + 2, known.end(), ", ")));
    gated.push_back(name);
  }
  return gated;
}

bool is_red(const Record& record, const std::vector<Declaration>& backends) {
  return record.status == Status::failed || record.status == Status::mistrusted || record.status == Status::error ||
         breaks_its_declaration(record, backends);
}

bool is_red(const Record& record, const RunData& run) {
  const auto declared = run.backends.find(device_kind(record));
  return is_red(record, declared == run.backends.end() ? std::vector<Declaration>() : declared->second);
}

namespace {

/// What became of the run's canaries.
struct CanaryCount {
  int64_t caught = 0, others = 0;
  std::string escaped;  ///< the first that was let through, or that nobody judged
};

/// Caught is what a pass judged wrong. A worker that dies "catches" everything, one that skips nothing: neither proves a thing.
bool is_caught(const PlantedPair& pair) {
  return pair.fate == Fate::caught && !pair.only_erred;
}

std::string escape_of(const PlantedPair& pair) {
  if (pair.fate == Fate::survived)
    return fmt::format("canary {} was not caught: a judge that lets it pass proves nothing; {}", pair.defect, pair.repro);
  return fmt::format("canary {} was not judged: {}; {}", pair.defect, pair.reason, pair.repro);
}

CanaryCount count_canaries(const RunData& run) {
  RunData canaries;
  canaries.records = run.canaries;
  CanaryCount count;
  for (const PlantedPair& pair : evaluate_selftest(canaries, {}).pairs) {
    ++(is_caught(pair) ? count.caught : count.others);
    if (!is_caught(pair) && count.escaped.empty()) count.escaped = escape_of(pair);
  }
  return count;
}

/// Of the gated backends those that have a result, in their order.
std::string who_is_gated(const RunData& run) {
  if (run.gated.empty()) return "no backend is gated";
  std::set<std::string> seen;
  for (const Record& record : run.records) seen.insert(record.backend);
  std::vector<std::string> names;
  std::ranges::copy_if(run.gated, std::back_inserter(names), [&](const std::string& name) { return seen.contains(name); });
  return names.empty() ? "no gated backend has a result" : fmt::format("gated: {}", fmt::join(names, ", "));
}

}  // namespace

GateResult apply_gate(const RunData& run) {
  const auto is_gated = [&](const Record& record) { return std::ranges::find(run.gated, record.backend) != run.gated.end(); };
  const bool any_gated = std::ranges::any_of(run.records, is_gated);
  int64_t red = 0, findings = 0, judged = 0, skipped = 0, set_aside = 0, considered = 0;
  std::string why_set_aside;
  for (const Record& record : run.records) {
    const bool gated = is_gated(record), is_finding = is_red(record, run);
    if (is_finding) ++(gated ? red : findings);
    if (gated || run.gates_nothing) {
      judged += is_judged(record);
      skipped += record.status == Status::skipped;
    }
    if (any_gated && !gated) continue;
    ++considered;
    if (is_finding || is_judged(record)) continue;
    ++set_aside;  // skipped, or outside what the backend declares
    if (why_set_aside.empty()) why_set_aside = record.reason;
  }
  const CanaryCount canaries = count_canaries(run);
  const std::string seen =
      run.canaries.empty() ? "" : fmt::format("; {} of {} canaries caught", canaries.caught, canaries.caught + canaries.others);
  const std::string counts = fmt::format("{} judged, {}{} red, {} finding{} in others; {}{}", judged,
                                         skipped > 0 ? fmt::format("{} skipped, ", skipped) : "", red, findings,
                                         findings == 1 ? "" : "s", who_is_gated(run), seen);
  if (!canaries.escaped.empty()) return {kExitGate, fmt::format("FAILED: {}: {}", canaries.escaped, counts)};
  if (red > 0) return {kExitGate, "FAILED: " + counts};
  if (!run.is_complete) return {kExitInfrastructure, fmt::format("incomplete: {}: {}", fmt::join(run.warnings, "; "), counts)};
  if (judged > 0) return {kExitOk, "passed: " + counts};
  if (considered > 0 && set_aside == considered)
    return {kExitAllSkipped,
            fmt::format("nothing to judge: everything was skipped or lies outside what the backends declare ({}): {}",
                        why_set_aside, counts)};
  return {kExitInfrastructure,
          "too little evidence: nothing that was judged is gated (--gate NAME gates other backends): " + counts};
}

}  // namespace attnbench
