#include "reports/findings.hpp"

#include <algorithm>
#include <sstream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/gate.hpp"
#include "reports/failure_details.hpp"
#include "reports/numbers.hpp"
#include "reports/run_view.hpp"

namespace attnbench {
namespace {

/// "dq: z is 12.3, limit 7.31; rms is 4.10, limit 1.05 (n 8192)": the gates of this verdict; empty if there is none.
std::string gates_text(const std::string& tensor, const TensorErrors& errors, Gate::Verdict verdict) {
  std::vector<std::string> parts;
  for (const auto& [name, gate] : errors.gates) {
    if (gate.verdict != verdict) continue;
    parts.push_back(fmt::format("{} {} {}, limit {}{}", name,
                                verdict == Gate::Verdict::fail ? "is" : "has no power:", significant(gate.value),
                                significant(gate.limit), gate.n > 0 ? fmt::format(" (n {})", gate.n) : ""));
  }
  return parts.empty() ? "" : fmt::format("{}: {}", tensor, fmt::join(parts, "; "));
}

void add_places(std::vector<std::string>& lines, const std::string& tensor, const TensorErrors& errors) {
  const auto place = [&](const Element& element) { return "[" + element_place(tensor, element) + "]"; };
  if (errors.worst) {
    lines.push_back(fmt::format("worst  {} {} got {:.6g}, expected {:.6g}", tensor, place(*errors.worst), errors.worst_got,
                                errors.worst_expected));
  }
  if (errors.first_bad && errors.first_bad != errors.worst) {
    lines.push_back(fmt::format("first  {} {}", tensor, place(*errors.first_bad)));
  }
  if (errors.bad > 0) lines.push_back(fmt::format("count  {}: {} of {} elements bad", tensor, errors.bad, errors.elements));
}

/// A reason may have several lines (a crash's last words): later ones stand under the first.
void add_reason(std::vector<std::string>& lines, const std::string& reason) {
  std::istringstream stream(reason);
  const char* head = "why    ";
  for (std::string line; std::getline(stream, line); head = "       ") lines.push_back(head + line);
}

}  // namespace

std::vector<Finding> findings_of(const RunData& run) {
  std::vector<Finding> findings;
  for (const Record& record : run.records) {
    if (is_red(record, run)) findings.push_back({&record, is_gated(run, record)});
  }
  std::stable_partition(findings.begin(), findings.end(), [](const Finding& f) { return f.gated; });
  return findings;
}

std::string status_word(Status status) {
  std::string text(name_of(status));
  for (char& c : text) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  return text;
}

std::vector<std::string> details(const Record& record, bool with_map) {
  std::vector<std::string> lines{"case   " + record.case_line};
  if (!record.name.empty()) lines.back() += "  # name=" + record.name;
  add_reason(lines, record.reason);
  if (has_failure_details(record)) {
    for (std::string& line : failure_details(record, with_map)) lines.push_back(std::move(line));
    lines.push_back("repro  " + record.repro);
    return lines;
  }
  const Gate::Verdict shown = record.status == Status::mistrusted ? Gate::Verdict::no_power : Gate::Verdict::fail;
  for (const auto& [tensor, errors] : record.errors) {
    const std::string gates = gates_text(tensor, errors, shown);
    if (gates.empty()) continue;
    lines.push_back("gate   " + gates);
    add_places(lines, tensor, errors);
  }
  lines.push_back("repro  " + record.repro);
  return lines;
}

}  // namespace attnbench
