#include "reports/findings_report.hpp"

#include <algorithm>
#include <limits>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "reports/advice.hpp"
#include "reports/run_view.hpp"
#include "reports/summary.hpp"

namespace attnbench {
namespace {

/// Findings whose backend, cause and so on are the same belong together.
Cause* find_cause(std::vector<Cause>& causes, const Record& record, const std::string& text) {
  const auto found = std::ranges::find_if(
      causes, [&](const Cause& cause) { return cause.first().backend == record.backend && cause.text == text; });
  return found == causes.end() ? nullptr : &*found;
}

void take_smallest(Cause& cause) {
  double fewest = std::numeric_limits<double>::infinity();
  cause.smallest = &cause.first();
  for (const Finding& finding : cause.findings) {
    const double scores = scores_to_compute(*finding.record);
    if (scores < fewest) fewest = scores, cause.smallest = finding.record;
  }
}

/// "forward, backward; 12 cases; bf16 fp16; failed".
std::string extent(const Cause& cause) {
  std::set<std::string> dtypes, cases, statuses;
  std::set<Pass> passes;
  for (const Finding& finding : cause.findings) {
    const Record& record = *finding.record;
    dtypes.insert(dtype_of(record.case_line));
    cases.insert(record.case_line);
    statuses.insert(std::string(name_of(record.status)));
    passes.insert(record.pass);
  }
  std::vector<std::string_view> names;
  for (const Pass pass : passes) names.push_back(name_of(pass));
  return fmt::format("{}; {}; {} case{}; {}", fmt::join(statuses, ", "), fmt::join(names, " and "), cases.size(),
                     cases.size() == 1 ? "" : "s", fmt::join(dtypes, " "));
}

std::string names_line(const Cause& cause) {
  std::set<std::string> names;
  for (const Finding& finding : cause.findings)
    if (!finding.record->name.empty()) names.insert(finding.record->name);
  return names.empty() ? "" : fmt::format("Named cases among them: {}.\n\n", fmt::join(names, ", "));
}

std::string details_block(const Record& record) {
  std::string text = "```\n";
  for (const std::string& line : details(record, true)) text += line + "\n";
  return text + "```\n";
}

std::string smallest_text(const Cause& cause, const std::vector<ShrunkRecord>& shrunk) {
  const auto found = std::ranges::find_if(shrunk, [&](const ShrunkRecord& s) { return s.found.repro == cause.smallest->repro; });
  if (found == shrunk.end()) return "The smallest of these cases:\n\n" + details_block(*cause.smallest);
  if (!found->red_alone)
    return "The smallest of these cases, which was not red when it was run again alone:\n\n" + details_block(*cause.smallest);
  return fmt::format("Shrunk, in {} tries, to:\n\n{}\nfrom the smallest of the run: `{}`\n", found->tries,
                     details_block(found->smallest), cause.smallest->case_line);
}

std::string cause_section(const Cause& cause, const std::vector<ShrunkRecord>& shrunk) {
  const std::string todo = cause.advice.empty() ? "**What to do:** unexplained; nothing is known that helps."
                                                : fmt::format("**What to do:** {}", cause.advice);
  const std::string source = cause.source.empty() ? "" : fmt::format(" ({})", cause.source);
  return fmt::format("### {}: {}\n\n{}.\n\n{}{}\n\n{}{}", cause.first().backend, cause.text, extent(cause), todo, source,
                     names_line(cause), smallest_text(cause, shrunk));
}

/// A line for each cause.
TextTable overview(const std::vector<Cause>& causes) {
  TextTable table{"", {{"backend", Column::Side::left}, {"results"}, {"what", Column::Side::left}}, {}, 1, ""};
  for (const Cause& cause : causes)
    table.rows.push_back({{cause.first().backend},
                          {std::to_string(cause.findings.size())},
                          {cause.text + (cause.advice.empty() ? " (unexplained)" : "")}});
  return table;
}

}  // namespace

std::vector<Cause> causes_of(const RunData& run) {
  const std::vector<Advice> table = read_advice();
  std::vector<Cause> causes;
  for (const Finding& finding : findings_of(run)) {
    const Record& record = *finding.record;
    const std::string signature = signature_of(record);
    const Advice* row = advice_on(record, signature, table);
    const std::string text = row ? row->cause : fmt::format("{} {}: {}", name_of(record.pass), name_of(record.status), signature);
    Cause* cause = find_cause(causes, record, text);
    if (!cause) cause = &causes.emplace_back(Cause{{}, text, row ? row->advice : "", row ? row->source : "", nullptr});
    cause->findings.push_back(finding);
  }
  for (Cause& cause : causes) take_smallest(cause);
  std::vector<std::string> order;
  for (const Cause& cause : causes)
    if (std::ranges::find(order, cause.first().backend) == order.end()) order.push_back(cause.first().backend);
  const auto rank = [&](const Cause& cause) { return std::ranges::find(order, cause.first().backend) - order.begin(); };
  std::ranges::stable_sort(causes, {}, rank);
  return causes;
}

std::string causes_console(const RunData& run, const TextStyle& style) {
  const std::vector<Cause> causes = causes_of(run);
  return causes.empty() ? "no result is red\n" : to_text(overview(causes), style);
}

std::string findings_markdown(const RunData& run, const std::vector<ShrunkRecord>& shrunk) {
  std::string text = "# Findings" + (run.headers.empty() ? "" : " of run " + run.headers.front().run) + "\n\n";
  text += command_section(run);
  if (!run.warnings.empty()) text += "\n";
  for (const std::string& warning : run.warnings) text += "- " + warning + "\n";
  const std::vector<Cause> causes = causes_of(run);
  if (causes.empty()) return text + "\nNone: no result is red.\n";
  size_t results = 0;
  for (const Cause& cause : causes) results += cause.findings.size();
  text += fmt::format(
      "\n{} red results, by backend and cause. A failure belongs to a gated backend and decides the exit code; a finding does "
      "not. "
      "results.jsonl has every one.\n\n{}",
      results, to_markdown(overview(causes)));
  for (const bool gated : {true, false}) {
    const auto is_of = [&](const Cause& cause) { return cause.findings.front().gated == gated; };
    if (std::ranges::none_of(causes, is_of)) continue;
    text += gated ? "\n## Failures\n" : "\n## Findings\n";
    for (const Cause& cause : causes)
      if (is_of(cause)) text += "\n" + cause_section(cause, shrunk);
  }
  return text;
}

}  // namespace attnbench
