#include "reports/findings.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "reports/numbers.hpp"
#include "reports/run_view.hpp"

namespace attnbench {
namespace {

const Declaration* declaration_of(const RunData& run, const std::string& backend) {
  const auto found = std::find_if(run.backends.begin(), run.backends.end(), [&](const auto& d) { return d.name == backend; });
  return found == run.backends.end() ? nullptr : &*found;
}

Device device_of(const Record& record) {
  const auto colon = record.device.find(':');
  Device device;
  device.kind = record.device.substr(0, colon);
  device.sm = record.sm;
  return device;
}

/// Unsupported, although the case lies inside what the backend declares.
bool breaks_its_declaration(const RunData& run, const Record& record) {
  const Declaration* declaration = declaration_of(run, record.backend);
  if (record.status != Status::unsupported || !declaration) return false;
  try {
    return !why_not(*declaration, parse_case(record.case_line), record.pass, device_of(record));
  } catch (const CaseError&) {
    return false;  // a record of another version: its grammar cannot be judged here
  }
}

bool is_red(const RunData& run, const Record& record) {
  return record.status == Status::failed || record.status == Status::error || record.status == Status::mistrusted ||
         breaks_its_declaration(run, record);
}

bool is_gated(const RunData& run, const Record& record) {
  const Declaration* declaration = declaration_of(run, record.backend);
  return declaration && declaration->ours;
}

std::string capital(std::string_view word) {
  std::string text(word);
  for (char& c : text) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  return text;
}

std::string element_text(const Element& e) {
  return fmt::format("[sequence {}, head {}, token {}, channel {}]", e[0], e[1], e[2], e[3]);
}

/// "dq: z 12.3 > limit 7.31, rms 4.10 > limit 1.05 (n 8192)"; empty if every gate of the tensor passed.
std::string gates_text(const std::string& tensor, const TensorErrors& errors) {
  std::vector<std::string> parts;
  for (const auto& [name, gate] : errors.gates) {
    if (gate.verdict == Gate::Verdict::pass) continue;
    const bool failed = gate.verdict == Gate::Verdict::fail;
    parts.push_back(fmt::format("{} {} {}, limit {}{}", name, failed ? "is" : "has no power:", significant(gate.value),
                                significant(gate.limit), gate.n > 0 ? fmt::format(" (n {})", gate.n) : ""));
  }
  return parts.empty() ? "" : fmt::format("{}: {}", tensor, fmt::join(parts, "; "));
}

/// "dq: worst [sequence 0, …] got 1.25, expected 0.5; first bad […]; 17 of 8192 elements bad".
std::string place_text(const std::string& tensor, const TensorErrors& errors) {
  std::vector<std::string> parts;
  if (errors.worst) {
    parts.push_back(fmt::format("worst {} got {:.6g}, expected {:.6g}", element_text(*errors.worst), errors.worst_got,
                                errors.worst_expected));
  }
  if (errors.first_bad && errors.first_bad != errors.worst) parts.push_back("first bad " + element_text(*errors.first_bad));
  if (errors.bad > 0) parts.push_back(fmt::format("{} of {} elements bad", errors.bad, errors.elements));
  return parts.empty() ? "" : fmt::format("{}: {}", tensor, fmt::join(parts, "; "));
}

}  // namespace

std::vector<Finding> findings_of(const RunData& run) {
  std::vector<Finding> findings;
  for (const Record& record : run.records) {
    if (is_red(run, record)) findings.push_back({&record, is_gated(run, record)});
  }
  std::stable_partition(findings.begin(), findings.end(), [](const Finding& f) { return f.gated; });
  return findings;
}

std::string headline(const Finding& finding) {
  const Record& r = *finding.record;
  return fmt::format("{} {} {} {}", capital(name_of(r.status)), r.backend, name_of(r.pass), dtype_of(r.case_line));
}

std::vector<std::string> details(const Record& record) {
  std::vector<std::string> lines{"case   " + record.case_line};
  if (!record.name.empty()) lines.back() += "  # name=" + record.name;
  if (!record.reason.empty()) lines.push_back("why    " + record.reason);
  for (const auto& [tensor, errors] : record.errors) {
    const std::string gates = gates_text(tensor, errors);
    if (gates.empty()) continue;
    lines.push_back("gate   " + gates);
    if (const std::string place = place_text(tensor, errors); !place.empty()) lines.push_back("where  " + place);
  }
  lines.push_back("repro  " + record.repro);
  return lines;
}

}  // namespace attnbench
