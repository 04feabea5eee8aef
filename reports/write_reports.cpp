#include "reports/write_reports.hpp"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <utility>

#include <fmt/format.h>

#include "harness/run/files.hpp"
#include "harness/run/signature_book.hpp"
#include "reports/audit_report.hpp"
#include "reports/console_table.hpp"
#include "reports/csv.hpp"
#include "reports/findings_report.hpp"
#include "reports/google_benchmark.hpp"
#include "reports/junit.hpp"
#include "reports/latex.hpp"
#include "reports/summary.hpp"

namespace attnbench {
namespace {

using Writer = std::function<std::string(const RunData&, const TextStyle&)>;

const std::vector<std::pair<std::string, Writer>>& writers() {
  static const std::vector<std::pair<std::string, Writer>> all{
      {"table", [](const RunData& run, const TextStyle& style) { return console_report(run, style); }},
      {"markdown", [](const RunData& run, const TextStyle&) { return summary_markdown(run); }},
      {"findings", [](const RunData& run, const TextStyle&) { return findings_markdown(run); }},
      {"csv", [](const RunData& run, const TextStyle&) { return results_csv(run); }},
      {"google-benchmark", [](const RunData& run, const TextStyle&) { return google_benchmark_json(run); }},
      {"junit", [](const RunData& run, const TextStyle&) { return junit_xml(run); }},
      {"signatures",
       [](const RunData& run, const TextStyle&) {
         const SignatureBook all = collect_signatures(run);
         return to_text(condense(all), leave_one_line_out(all));
       }},
      {"latex", [](const RunData& run, const TextStyle&) { return latex_tables(run); }},
  };
  return all;
}

}  // namespace

const std::vector<std::string>& report_formats() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const auto& [name, writer] : writers()) all.push_back(name);
    return all;
  }();
  return names;
}

std::string render_report(const RunData& run, const std::string& format, const TextStyle& style) {
  for (const auto& [name, writer] : writers()) {
    if (name == format) return writer(run, style);
  }
  std::string known;
  for (const std::string& name : report_formats()) known += (known.empty() ? "" : ", ") + name;
  throw std::invalid_argument(fmt::format("report: unknown format '{}'; known: {}", format, known));
}

void write_reports(const std::filesystem::path& run_dir) {
  const RunData run = read_run(run_dir);
  write_file(run_dir / "results.csv", results_csv(run));
  write_file(run_dir / "summary.md", summary_markdown(run));
  write_file(run_dir / kFindingsFile, findings_markdown(run));
  write_file(run_dir / "benchmark.json", google_benchmark_json(run));
  if (!has_invariance(run)) return;
  write_file(run_dir / "audit.md", audit_markdown(run));
  write_file(run_dir / "audit.json", audit_json(run));
}

}  // namespace attnbench
