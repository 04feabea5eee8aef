#include "reports/audit_report.hpp"

#include <algorithm>
#include <map>
#include <tuple>

#include <fmt/format.h>

#include "harness/run/gate.hpp"
#include "reports/finding_groups.hpp"
#include "reports/run_view.hpp"

namespace attnbench {
namespace {

constexpr std::array kTensors{"o", "lse", "dq", "dk", "dv"};
constexpr size_t kShownDifferences = 20;

/// One backend, tensor and relation over all cases.
struct Tally {
  int64_t compared = 0, differing = 0;  ///< cases
  bool promised = false;
  const Record* record = nullptr;          ///< the first that differs
  const Invariance* difference = nullptr;  ///< what it says
  std::string reason;                      ///< why nothing was compared
};
using TallyKey = std::tuple<size_t, size_t, Relation>;  // places of the backend and of the tensor

/// Which cell of the table an entry belongs to.
TallyKey key_of(const std::vector<std::string>& backends, const Record& record, const Invariance& invariance) {
  const auto backend = std::ranges::find(backends, record.backend);
  const auto tensor = std::ranges::find(kTensors, invariance.tensor);
  return {static_cast<size_t>(backend - backends.begin()), static_cast<size_t>(tensor - kTensors.begin()), invariance.relation};
}

std::map<TallyKey, Tally> tallies_of(const RunData& run) {
  const std::vector<std::string> backends = backend_names(run);
  std::map<TallyKey, Tally> tallies;
  for (const Record& record : run.records)
    for (const Invariance& invariance : record.invariance) {
      Tally& tally = tallies[key_of(backends, record, invariance)];
      tally.promised = tally.promised || invariance.promised;
      if (invariance.outcome == Invariance::Outcome::not_supported) {
        tally.reason = invariance.reason;
        continue;
      }
      ++tally.compared;
      if (invariance.outcome == Invariance::Outcome::equal) continue;
      ++tally.differing;
      if (tally.record) continue;
      tally.record = &record;
      tally.difference = &invariance;
    }
  return tallies;
}

Cell cell_of(const std::map<TallyKey, Tally>& tallies, const TallyKey& key) {
  const auto found = tallies.find(key);
  if (found == tallies.end() || found->second.compared == 0) return {"–", Tone::dim};
  const Tally& tally = found->second;
  const std::string mark = tally.promised ? "*" : "";
  if (tally.differing == 0) return {"equal" + mark, Tone::good};
  return {fmt::format("differs {}/{}{}", tally.differing, tally.compared, mark), tally.promised ? Tone::bad : Tone::warning};
}

std::string header_of(Relation relation, const RunData& run) {
  if (relation != Relation::concurrency) return std::string(name_of(relation));
  const bool on_cpu = !run.records.empty() && run.records.front().device == "cpu";
  return on_cpu ? "threads" : "busy stream";
}

/// What is told of a difference, a line each; the first names it.
using Lines = std::vector<std::string>;

std::vector<Lines> differences_of(const RunData& run) {
  std::vector<std::pair<bool, Lines>> found;
  for (const auto& [key, tally] : tallies_of(run)) {
    if (!tally.difference) continue;
    const Invariance& i = *tally.difference;
    const std::string where = i.where.empty() ? "" : fmt::format(", {} ({} of {} differ)", i.where, i.differing, i.compared);
    found.push_back({tally.promised,
                     {fmt::format("{}, {}: {}{}", tally.record->backend, header_of(i.relation, run), sentence_of(i),
                                  tally.promised ? ": it promises that it does not" : ""),
                      fmt::format("{} of {} cases{}", tally.differing, tally.compared, where), "repro  " + tally.record->repro}});
  }
  std::ranges::stable_partition(found, [](const auto& difference) { return difference.first; });
  std::vector<Lines> differences;
  for (auto& [promised, lines] : found) differences.push_back(std::move(lines));
  return differences;
}

/// The records that decide, or would: red for their bits, or for another reason. Those that are alike once.
std::vector<Lines> red_records(const RunData& run) {
  std::vector<Lines> red;
  for (const FindingGroup& group : group_findings(findings_of(run))) {
    Lines& lines = red.emplace_back(Lines{headline(group) + (group.gated() ? "" : "  (finding: not gated)")});
    for (const std::string& line : details(group, false)) lines.push_back(line);
  }
  return red;
}

std::string listing(const std::string& title, const std::vector<Lines>& entries, size_t most, Tone tone, const TextStyle& style) {
  if (entries.empty()) return "";
  std::string text = "\n" + tinted(fmt::format("{}: {}", title, entries.size()), tone, style.colour) + "\n";
  const size_t shown = most == 0 ? entries.size() : std::min(most, entries.size());
  for (size_t n = 0; n < shown; ++n)
    for (size_t line = 0; line < entries[n].size(); ++line)
      text += fmt::format("{}{}\n", line == 0 ? "  " : "    ", entries[n][line]);
  if (shown < entries.size()) text += fmt::format("  … and {} more, in audit.md\n", entries.size() - shown);
  return text;
}

TextTable table_of_cases(const RunData& run) {
  constexpr auto kLeft = Column::Side::left;
  TextTable table{"Every difference",
                  {{"backend", kLeft},
                   {"relation", kLeft},
                   {"tensor", kLeft},
                   {"elements"},
                   {"of"},
                   {"ulp"},
                   {"first", kLeft},
                   {"was"},
                   {"got"},
                   {"where", kLeft},
                   {"case", kLeft}},
                  {},
                  3,
                  ""};
  for (const Record& record : run.records)
    for (const Invariance& i : record.invariance) {
      if (i.outcome != Invariance::Outcome::differs) continue;
      table.rows.push_back({{record.backend},
                            {std::string(name_of(i.relation)) + (i.promised ? "*" : "")},
                            {i.tensor},
                            {std::to_string(i.changed)},
                            {std::to_string(i.elements)},
                            {fmt::format("{:g}", i.max_ulp)},
                            {fmt::format("[{},{},{},{}]", i.first[0], i.first[1], i.first[2], i.first[3])},
                            {fmt::format("{:.9g}", i.judged)},
                            {fmt::format("{:.9g}", i.got)},
                            {i.where},
                            {record.case_line}});
    }
  return table;
}

}  // namespace

bool has_invariance(const RunData& run) {
  return std::ranges::any_of(run.records, [](const Record& record) { return !record.invariance.empty(); });
}

TextTable invariance_table(const RunData& run) {
  const std::map<TallyKey, Tally> tallies = tallies_of(run);
  const std::vector<std::string> backends = backend_names(run);
  TextTable table{"Bits (equal, or the cases that differ of those compared)",
                  {{"backend", Column::Side::left}, {"tensor", Column::Side::left}},
                  {},
                  2,
                  "* promised by the backend. – not compared: not supported, or not asked for."};
  std::vector<Relation> relations;
  for (Relation relation : kRelations)
    if (std::ranges::any_of(tallies, [&](const auto& entry) { return std::get<2>(entry.first) == relation; }))
      relations.push_back(relation);
  for (Relation relation : relations) table.columns.push_back({header_of(relation, run), Column::Side::left});
  for (size_t backend = 0; backend < backends.size(); ++backend)
    for (size_t tensor = 0; tensor < kTensors.size(); ++tensor) {
      std::vector<Cell> row{{backends[backend]}, {kTensors[tensor]}};
      bool any = false;
      for (Relation relation : relations) {
        any = any || tallies.contains({backend, tensor, relation});
        row.push_back(cell_of(tallies, {backend, tensor, relation}));
      }
      if (any) table.rows.push_back(std::move(row));
    }
  return table;
}

std::string audit_console(const RunData& run, const TextStyle& style) {
  TextStyle whole = style;
  whole.max_rows = 0;
  return to_text(invariance_table(run), whole) +
         listing("Differences", differences_of(run), kShownDifferences, Tone::warning, style) +
         listing("Red", red_records(run), kShownDifferences, Tone::bad, style);
}

std::string audit_markdown(const RunData& run) {
  const std::string id = run.headers.empty() ? "" : " " + run.headers.front().run;
  const std::string place =
      run.headers.empty() || run.records.empty()
          ? ""
          : fmt::format("{}, {}\n\n", device_title(run, run.records.front().device), run.headers.front().started);
  std::string text =
      fmt::format("# Bits of run{}\n\n{}{}\n\n{}", id, place, apply_gate(run).sentence, to_markdown(invariance_table(run)));
  const std::string told =
      listing("Differences", differences_of(run), 0, Tone::plain, {}) + listing("Red", red_records(run), 0, Tone::plain, {});
  if (!told.empty()) text += fmt::format("\n```{}```\n", told);
  const TextTable cases = table_of_cases(run);
  return cases.rows.empty() ? text : text + "\n" + to_markdown(cases);
}

std::string audit_json(const RunData& run) {
  nlohmann::json entries = nlohmann::json::array();
  for (const Record& record : run.records) {
    const nlohmann::json of_record = {{"backend", record.backend},
                                      {"device", record.device},
                                      {"pass", name_of(record.pass)},
                                      {"case", record.case_line},
                                      {"status", name_of(record.status)}};
    for (const Invariance& invariance : record.invariance) {
      entries.push_back(of_record);
      entries.back().update(to_json_invariance(invariance));
    }
  }
  const std::string id = run.headers.empty() ? "" : run.headers.front().run;
  return nlohmann::json{{"run", id}, {"entries", entries}}.dump(2) + "\n";
}

}  // namespace attnbench
