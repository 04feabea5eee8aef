#include "reports/junit.hpp"

#include <algorithm>
#include <vector>

#include <fmt/format.h>

#include "harness/run/gate.hpp"
#include "reports/findings.hpp"
#include "reports/run_view.hpp"

namespace attnbench {
namespace {

/// What XML 1.0 cannot hold at all becomes '?'.
std::string xml_escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\n':
        out += "&#10;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 && c != '\t' ? '?' : c;
    }
  }
  return out;
}

enum class Outcome { passed, failure, error, skipped };

struct Testcase {
  std::string name;
  Outcome outcome = Outcome::passed;
  std::string message;
};

bool has_failed_gate(const TensorErrors& errors) {
  return std::any_of(errors.gates.begin(), errors.gates.end(),
                     [](const auto& g) { return g.second.verdict == Gate::Verdict::fail; });
}

Outcome outcome_of(const RunData& run, const Record& record, bool gated) {
  if (!is_red(record, run)) return record.status == Status::passed ? Outcome::passed : Outcome::skipped;
  if (!gated) return Outcome::skipped;
  return record.status == Status::error ? Outcome::error : Outcome::failure;
}

std::vector<Testcase> testcases_of(const RunData& run, const Record& record, bool gated) {
  const Outcome outcome = outcome_of(run, record, gated);
  const bool finding = !gated && is_red(record, run);
  const std::string message = finding ? "finding (not gated): " + record.reason : record.reason;
  std::vector<Testcase> cases;
  bool explained = false;
  if (record.status == Status::passed || record.status == Status::failed) {
    for (const auto& [tensor, errors] : record.errors) {
      const bool bad = record.status == Status::failed && has_failed_gate(errors);
      explained = explained || bad || record.status == Status::passed;
      cases.push_back({fmt::format("{} [{}]", record.case_line, tensor), bad ? outcome : Outcome::passed, bad ? message : ""});
    }
  }
  if (!explained) cases.push_back({record.case_line, outcome, message});
  return cases;
}

std::string testcase_xml(const Record& record, const Testcase& testcase, double seconds) {
  std::string body;
  if (testcase.outcome == Outcome::skipped) body = fmt::format("<skipped message=\"{}\"/>", xml_escaped(testcase.message));
  if (testcase.outcome == Outcome::failure || testcase.outcome == Outcome::error) {
    const char* element = testcase.outcome == Outcome::failure ? "failure" : "error";
    std::string lines;
    for (const std::string& line : details(record, false)) lines += line + "\n";
    body = fmt::format("<{0} type=\"{1}\" message=\"{2}\">{3}</{0}>", element, name_of(record.status),
                       xml_escaped(testcase.message), xml_escaped(lines));
  }
  return fmt::format(
      "    <testcase classname=\"{}.{}.{}\" name=\"{}\" time=\"{:.6f}\">{}<system-out>{}</system-out></testcase>\n",
      xml_escaped(record.backend), name_of(record.pass), dtype_of(record.case_line), xml_escaped(testcase.name), seconds, body,
      xml_escaped(record.repro));
}

std::string suite_xml(const RunData& run, const std::string& suite) {
  std::string body;
  int tests = 0, failures = 0, errors = 0, skipped = 0;
  for (const Record& record : run.records) {
    if (record.suite != suite) continue;
    double seconds = record.seconds;  // of the whole record: on its first testcase
    for (const Testcase& testcase : testcases_of(run, record, is_gated(run, record))) {
      ++tests;
      failures += testcase.outcome == Outcome::failure;
      errors += testcase.outcome == Outcome::error;
      skipped += testcase.outcome == Outcome::skipped;
      body += testcase_xml(record, testcase, seconds);
      seconds = 0;
    }
  }
  return fmt::format("  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\">\n{}  </testsuite>\n",
                     xml_escaped(suite), tests, failures, errors, skipped, body);
}

/// A run that lacks results is no green one, whatever those that are here say.
std::string completeness_xml(const RunData& run) {
  if (run.is_complete) return "";
  std::string text;
  for (const std::string& warning : run.warnings)
    text +=
        fmt::format("    <testcase classname=\"attnbench\" name=\"every result is here\"><error message=\"{}\"/></testcase>\n",
                    xml_escaped(warning));
  return fmt::format("  <testsuite name=\"run\" tests=\"{0}\" failures=\"0\" errors=\"{0}\" skipped=\"0\">\n{1}  </testsuite>\n",
                     run.warnings.size(), text);
}

}  // namespace

std::string junit_xml(const RunData& run) {
  std::string text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"attnbench\">\n";
  for (const std::string& suite : suite_names(run)) text += suite_xml(run, suite);
  return text + completeness_xml(run) + "</testsuites>\n";
}

}  // namespace attnbench
