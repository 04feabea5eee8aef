#include "reports/finding_groups.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <tuple>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "reports/numbers.hpp"
#include "reports/run_view.hpp"

namespace attnbench {

double scores_to_compute(const Record& record) {
  try {
    const Case c = parse_case(record.case_line, "record");
    const SequenceLengths lengths = sequence_lengths(c.problem, c.seed);
    double scores = 0;
    for (size_t n = 0; n < lengths.q.size(); ++n) scores += double(lengths.q[n]) * double(lengths.k[n]);
    return scores * double(c.problem.hq) + double(lengths.total_q() + lengths.total_k());
  } catch (const std::exception&) {  // a record of another version
    return std::numeric_limits<double>::infinity();
  }
}

namespace {

constexpr size_t kReasonLetters = 80;

/// The gate that is furthest beyond its limit, and how far.
struct Excess {
  double ratio = 0;
  std::string text;
};
Excess excess_of(const Record& record) {
  Excess most;
  for (const auto& [tensor, errors] : record.errors)
    for (const auto& [name, gate] : errors.gates) {
      if (gate.verdict != Gate::Verdict::fail) continue;
      const bool is_finite = gate.limit > 0 && !std::isnan(gate.value);
      const double ratio = is_finite ? gate.value / gate.limit : std::numeric_limits<double>::infinity();
      if (ratio > most.ratio)
        most = {ratio, fmt::format("{} of {} is {}, limit {}", name, tensor, significant(gate.value), significant(gate.limit))};
    }
  return most;
}

void complete(FindingGroup& group) {
  double fewest = std::numeric_limits<double>::infinity(), furthest = 0;
  group.smallest = group.worst = group.findings.front().record;
  for (const Finding& finding : group.findings) {
    const double scores = scores_to_compute(*finding.record), ratio = excess_of(*finding.record).ratio;
    if (scores < fewest) fewest = scores, group.smallest = finding.record;
    if (ratio > furthest) furthest = ratio, group.worst = finding.record;
  }
  if (furthest == 0) group.worst = group.smallest;
}

}  // namespace

std::string signature_of(const Record& record) {
  std::set<std::string> tensors;
  for (const auto& [tensor, errors] : record.errors)
    for (const auto& [name, gate] : errors.gates)
      if (gate.verdict == Gate::Verdict::fail)
        tensors.insert(tensor.substr(0, tensor.find("_given_o")) + (name == "nonfinite" ? " (not finite)" : ""));
  if (!tensors.empty()) return fmt::format("{}", fmt::join(tensors, ", "));
  std::string start;
  for (const char c : record.reason.substr(0, record.reason.find('\n'))) {
    const bool digit = c >= '0' && c <= '9';
    if (!digit || !start.ends_with('#')) start += digit ? '#' : c;
  }
  return start.size() > kReasonLetters ? start.substr(0, kReasonLetters) + "…" : start;
}

std::vector<FindingGroup> group_findings(const std::vector<Finding>& findings) {
  using Key = std::tuple<bool, Status, std::string, Pass, std::string>;
  std::vector<std::pair<Key, FindingGroup>> groups;
  for (const Finding& finding : findings) {
    const Record& r = *finding.record;
    const Key key{finding.gated, r.status, r.backend, r.pass, signature_of(r)};
    const auto same = [&](const auto& group) { return group.first == key; };
    auto found = std::find_if(groups.begin(), groups.end(), same);
    if (found == groups.end()) found = groups.insert(groups.end(), {key, {{}, std::get<4>(key), nullptr, nullptr}});
    found->second.findings.push_back(finding);
  }
  std::vector<FindingGroup> result;
  for (auto& [key, group] : groups) {
    complete(group);
    result.push_back(std::move(group));
  }
  return result;
}

std::string headline(const FindingGroup& group) {
  const Record& first = *group.findings.front().record;
  std::set<std::string> dtypes;
  for (const Finding& finding : group.findings) dtypes.insert(dtype_of(finding.record->case_line));
  const size_t count = group.findings.size();
  return fmt::format("{} {} {}: {} ({} case{}, {})", status_word(first.status), first.backend, name_of(first.pass),
                     group.signature, count, count == 1 ? "" : "s", fmt::join(dtypes, " "));
}

std::vector<std::string> details(const FindingGroup& group, bool with_map) {
  std::vector<std::string> lines = details(*group.smallest, with_map);
  if (group.findings.size() == 1) return lines;
  lines.insert(lines.begin(), fmt::format("alike  {} cases; the smallest:", group.findings.size()));
  if (group.worst == group.smallest) return lines;
  lines.push_back("the furthest off: " + excess_of(*group.worst).text);
  lines.push_back("repro  " + group.worst->repro);
  return lines;
}

}  // namespace attnbench
