#include "reports/summary.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "reports/audit_report.hpp"
#include "reports/difference_tables.hpp"
#include "reports/finding_groups.hpp"
#include "reports/judging_cost.hpp"
#include "reports/run_view.hpp"
#include "reports/timing_tables.hpp"
#include "reports/verdict_tables.hpp"

namespace attnbench {
namespace {

/// A word as a shell reads it back.
std::string shell_word(const std::string& word) {
  const bool plain = !word.empty() && word.find_first_not_of(
                                          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                          "-_=+,./:@%") == std::string::npos;
  if (plain) return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

/// Of the last start; earlier ones of a resumed run are in results.jsonl.
std::string environment_section(const RunData& run) {
  if (run.headers.empty()) return "";
  TextTable table{"", {{"", Column::Side::left}, {"", Column::Side::left}}, {}, 2, ""};
  for (const auto& [key, value] : environment_of(run.headers.back())) table.rows.push_back({{key}, {value}});
  return table.rows.empty() ? "" : fmt::format("## Environment\n\n{}", to_markdown(table));
}

std::string findings_section(const RunData& run) {
  const auto findings = findings_of(run);
  std::string text = "## Failures and findings\n\n";
  if (findings.empty()) return text + "None.\n";
  text += fmt::format(
      "{} in all. A failure belongs to a gated backend and decides the exit code; a finding does not. Those that are alike are\n"
      "told once, by their smallest case; results.csv and results.jsonl have every one.\n",
      findings.size());
  for (const FindingGroup& group : group_findings(findings)) {
    text += fmt::format("\n### {}: {}\n\n```\n", group.gated() ? "Failure" : "Finding", headline(group));
    for (const std::string& line : details(group, true)) text += line + "\n";
    text += "```\n";
  }
  return text;
}

std::string list_section(const std::string& title, const std::vector<std::string>& lines, const std::string& none) {
  std::string text = "## " + title + "\n\n";
  if (lines.empty()) return text + none + "\n";
  for (const std::string& line : lines) text += "- " + line + "\n";
  return text;
}

std::string tables_section(const std::string& title, const std::vector<TextTable>& tables, const std::string& none) {
  std::string text = "## " + title + "\n";
  bool any = false;
  for (const TextTable& table : tables) {
    if (table.rows.empty()) continue;
    text.append("\n").append(to_markdown(table));
    any = true;
  }
  return any ? text : text + "\n" + none + "\n";
}

std::vector<TextTable> joined(std::vector<TextTable> tables, const std::vector<TextTable>& more) {
  tables.insert(tables.end(), more.begin(), more.end());
  return tables;
}

}  // namespace

std::string command_section(const RunData& run) {
  std::string text = "## Command\n\n```sh\n";
  for (const RunHeader& header : run.headers) {
    std::string line;
    for (const std::string& word : header.argv) line.append(line.empty() ? "" : " ").append(shell_word(word));
    text += fmt::format("{}  # run {}, {}\n", line, header.run, header.started);
  }
  return text + "```\n";
}

std::string summary_markdown(const RunData& run) {
  const std::string id = run.headers.empty() ? "" : " " + run.headers.front().run;
  std::vector<std::string> sections{"# attnbench run" + id + "\n", command_section(run)};
  sections.push_back(tables_section("Verdicts", {verdict_counts(run)}, "No records."));
  for (const std::string& line : not_on_device_lines(run)) sections.push_back(line + "\n");
  sections.push_back(findings_section(run));
  if (!run.warnings.empty()) sections.push_back(list_section("Warnings", run.warnings, ""));
  sections.push_back(list_section("Safety flags", safety_flags(run), "No record is touched by a safety rule."));
  if (const auto choices = layer_choices(run); !choices.empty())
    sections.push_back(list_section("Picked for layers", choices, ""));
  sections.push_back(tables_section("The field's rule", {field_rule_counts(run)}, "No record carries a rule of the field."));
  sections.push_back(tables_section("Gates without power", {no_power_counts(run)}, "Every gate had power."));
  sections.push_back(tables_section("What judging costs", {judging_cost(run)}, "No record says what was spent on it."));
  if (has_invariance(run)) sections.push_back(tables_section("Bits", {invariance_table(run)}, ""));
  sections.push_back(tables_section("Times", joined(time_tables(run), step_time_tables(run)), "Nothing was timed."));
  sections.push_back(tables_section("Rates", rate_tables(run), "No operation was timed."));
  if (const TextTable regimes = regime_table(run); !regimes.rows.empty())
    sections.push_back(tables_section("Regimes", {regimes}, ""));
  sections.push_back(tables_section("Memory", joined({memory_table(run)}, step_memory_tables(run)), "No memory was recorded."));
  sections.push_back(tables_section("Differences between backends", difference_tables(run), "None was recorded."));
  sections.push_back(tables_section("Not judged", {reason_counts(run)}, "Nothing was unsupported or skipped."));
  sections.push_back(environment_section(run));
  std::string text;
  for (const std::string& section : sections) {
    if (!section.empty()) text += (text.empty() ? "" : "\n") + section;
  }
  return text;
}

}  // namespace attnbench
