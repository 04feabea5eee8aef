#include "reports/console_table.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/run_suites.hpp"
#include "reports/audit_report.hpp"
#include "reports/difference_tables.hpp"
#include "reports/finding_groups.hpp"
#include "reports/run_view.hpp"
#include "reports/timing_tables.hpp"
#include "reports/verdict_tables.hpp"

namespace attnbench {
namespace {

constexpr std::size_t kShownGroups = 12, kMappedGroups = 3;

/// Of what decides the exit code, and of a case that was typed: few.
bool has_map(const FindingGroup& group, std::size_t place) {
  return place < kMappedGroups && (group.gated() || group.smallest->suite == kTypedSuite);
}

std::string findings_text(const std::vector<Finding>& findings, const TextStyle& style) {
  if (findings.empty()) return "";
  const auto gated =
      static_cast<std::size_t>(std::count_if(findings.begin(), findings.end(), [](const auto& f) { return f.gated; }));
  std::string text = tinted(fmt::format("{} failure{} (gated), {} finding{} (not gated)", gated, gated == 1 ? "" : "s",
                                        findings.size() - gated, findings.size() - gated == 1 ? "" : "s"),
                            gated > 0 ? Tone::bad : Tone::warning, style.colour) +
                     "\n";
  const std::vector<FindingGroup> groups = group_findings(findings);
  for (std::size_t i = 0; i < std::min(groups.size(), kShownGroups); ++i) {
    const FindingGroup& group = groups[i];
    text.append("\n").append(tinted(headline(group), group.gated() ? Tone::bad : Tone::warning, style.colour));
    text += tinted(group.gated() ? "" : "  (finding: not gated)", Tone::dim, style.colour) + "\n";
    for (const std::string& line : details(group, has_map(group, i))) text += "  " + line + "\n";
  }
  if (groups.size() > kShownGroups)
    text += fmt::format("\n… and {} more kinds of failure, in summary.md\n", groups.size() - kShownGroups);
  return text;
}

std::string lines_text(const std::string& title, const std::vector<std::string>& lines, const TextStyle& style) {
  if (lines.empty()) return "";
  std::string text = tinted(title, Tone::warning, style.colour) + "\n";
  for (const std::string& line : lines) text += "  " + line + "\n";
  return text;
}

}  // namespace

std::string console_report(const RunData& run, const TextStyle& style) {
  std::vector<std::string> parts{findings_text(findings_of(run), style), lines_text("Warnings", run.warnings, style),
                                 lines_text("Safety", safety_flags(run), style),
                                 lines_text("Picked for layers", layer_choices(run), style)};
  const auto add = [&](const TextTable& table, const TextStyle& table_style) {
    if (!table.rows.empty()) parts.push_back(to_text(table, table_style));
  };
  TextStyle whole = style;
  whole.max_rows = 0;
  add(verdict_counts(run), whole);
  parts.push_back(fmt::format("{}", fmt::join(not_on_device_lines(run), "\n")));
  add(invariance_table(run), whole);
  for (const TextTable& table : time_tables(run)) add(table, style);
  for (const TextTable& table : step_time_tables(run)) add(table, style);
  for (const TextTable& table : rate_tables(run)) add(table, style);
  add(regime_table(run), whole);
  add(memory_table(run), whole);
  for (const TextTable& table : step_memory_tables(run)) add(table, style);
  for (const TextTable& table : difference_tables(run)) add(table, whole);

  std::string text;
  for (const std::string& part : parts) {
    if (!part.empty()) text += (text.empty() ? "" : "\n") + part;
  }
  return text;
}

}  // namespace attnbench
