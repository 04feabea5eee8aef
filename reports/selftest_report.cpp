#include "reports/selftest_report.hpp"

#include <algorithm>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/files.hpp"
#include "harness/run/json_reader.hpp"
#include "harness/run/planted.hpp"
#include "reports/run_view.hpp"

namespace attnbench {
namespace {

constexpr size_t kShownAlarms = 2;  // a row fits a terminal of 120 columns
constexpr size_t kShownPairs = 20;

/// The pairs of one defect, over all backends that have it.
struct DefectRow {
  int64_t caught = 0, only_erred = 0, equivalent = 0, survived = 0, unknown = 0;
  std::map<std::string, int64_t> alarms;
};

std::map<std::string, DefectRow> rows_of(const Selftest& selftest) {
  std::map<std::string, DefectRow> rows;
  for (const PlantedPair& pair : selftest.pairs) {
    if (pair.fate == Fate::outside) continue;
    DefectRow& row = rows[defect_of(pair.defect)];
    if (pair.fate == Fate::caught) ++row.caught;
    if (pair.only_erred) ++row.only_erred;
    if (pair.fate == Fate::equivalent) ++row.equivalent;
    if (pair.fate == Fate::survived) ++row.survived;
    if (pair.fate == Fate::survived && !pair.known) ++row.unknown;
    for (const Alarm& alarm : pair.alarms) ++row.alarms[text_of(alarm)];
  }
  return rows;
}

/// "z dq 12, rms o 3, memory 2": the most frequent first.
std::string alarms_text(const std::map<std::string, int64_t>& alarms, size_t most) {
  std::vector<std::pair<std::string, int64_t>> sorted(alarms.begin(), alarms.end());
  std::ranges::stable_sort(sorted, std::greater(), &std::pair<std::string, int64_t>::second);
  const size_t shown = most == 0 ? sorted.size() : std::min(most, sorted.size());
  std::vector<std::string> parts;
  for (size_t i = 0; i < shown; ++i) parts.push_back(fmt::format("{} {}", sorted[i].first, sorted[i].second));
  if (shown < sorted.size()) parts.push_back(fmt::format("{} more", sorted.size() - shown));
  return fmt::format("{}", fmt::join(parts, ", "));
}

struct GateCounts {
  int64_t caught = 0, alone = 0;
};

/// Of one backend, by its real name, or of all.
std::map<std::string, GateCounts> gate_counts(const Selftest& selftest, const std::string& backend = "") {
  std::map<std::string, GateCounts> counts;
  for (const PlantedPair& pair : selftest.pairs) {
    if (!backend.empty() && real_backend_of(pair.defect) != backend) continue;
    std::set<std::string> gates;
    for (const Alarm& alarm : pair.alarms) gates.insert(alarm.gate);
    for (const std::string& gate : gates) {
      ++counts[gate].caught;
      if (gates.size() == 1) ++counts[gate].alone;
    }
  }
  return counts;
}

/// What became of the pairs of one backend, by its real name.
std::map<std::string, std::map<Fate, int64_t>> fates_of_backends(const Selftest& selftest) {
  std::map<std::string, std::map<Fate, int64_t>> fates;
  for (const PlantedPair& pair : selftest.pairs)
    if (pair.fate != Fate::outside) ++fates[real_backend_of(pair.defect)][pair.fate];
  return fates;
}

/// Of the pairs of one backend, those that were caught by an error alone.
int64_t only_erred(const Selftest& selftest, const std::string& backend) {
  return std::ranges::count_if(
      selftest.pairs, [&](const PlantedPair& pair) { return pair.only_erred && real_backend_of(pair.defect) == backend; });
}

nlohmann::json gates_json(const std::map<std::string, GateCounts>& counts) {
  nlohmann::json gates = nlohmann::json::object();
  for (const auto& [gate, count] : counts) gates[gate] = {{"caught", count.caught}, {"alone", count.alone}};
  return gates;
}

nlohmann::json backends_json(const Selftest& selftest) {
  nlohmann::json backends = nlohmann::json::object();
  for (auto& [backend, fates] : fates_of_backends(selftest))
    backends[backend] = {{"pairs", fates[Fate::caught] + fates[Fate::equivalent] + fates[Fate::survived]},
                         {"caught", fates[Fate::caught]},
                         {"only_erred", only_erred(selftest, backend)},
                         {"equivalent", fates[Fate::equivalent]},
                         {"survived", fates[Fate::survived]},
                         {"gates", gates_json(gate_counts(selftest, backend))}};
  return backends;
}

/// "rms of dv 0.97 of its limit".
std::string nearest_text(const PlantedPair& pair) {
  if (!pair.largest) return "no gate had the power to see it";
  return fmt::format("{} of {} {:.2f} of its limit", pair.largest->gate, pair.largest->tensor, pair.largest->ratio());
}

/// Those that nobody expects first.
std::vector<const PlantedPair*> survivors_of(const Selftest& selftest) {
  std::vector<const PlantedPair*> survivors;
  for (const PlantedPair& pair : selftest.pairs)
    if (pair.fate == Fate::survived) survivors.push_back(&pair);
  std::ranges::stable_partition(survivors, [](const PlantedPair* pair) { return !pair->known; });
  return survivors;
}

/// What is told line by line under a heading.
struct Listing {
  std::string title;
  std::vector<std::vector<std::string>> entries;  ///< the first line of each names it
};

std::vector<Listing> listings_of(const Selftest& selftest) {
  Listing survivors{"Survivors", {}}, stale{"Known survivors that survive no more", {}}, alarms{"False alarms", {}};
  for (const PlantedPair* pair : survivors_of(selftest))
    survivors.entries.push_back({fmt::format("{}{}: {}", pair->defect, pair->known ? " (known)" : "", nearest_text(*pair)),
                                 "case   " + pair->case_line, "repro  " + pair->repro});
  for (const KnownSurvivor& entry : selftest.stale) stale.entries.push_back({entry.defect, "case   " + entry.case_line});
  for (const FalseAlarm& alarm : selftest.false_alarms)
    alarms.entries.push_back(
        {fmt::format("{}: {}", alarm.backend, alarm.what), "case   " + alarm.case_line, "repro  " + alarm.repro});
  return {survivors, stale, alarms};
}

std::string console_listing(const Listing& listing, const TextStyle& style) {
  if (listing.entries.empty()) return "";
  std::string text = tinted(fmt::format("{}: {}", listing.title, listing.entries.size()), Tone::warning, style.colour) + "\n";
  const size_t shown = std::min(kShownPairs, listing.entries.size());
  for (size_t i = 0; i < shown; ++i) {
    const std::vector<std::string>& lines = listing.entries[i];
    text += fmt::format("  {}\n", lines.front());
    for (size_t n = 1; n < lines.size(); ++n) text += fmt::format("    {}\n", lines[n]);
  }
  if (shown < listing.entries.size()) text += fmt::format("  … and {} more, in selftest.md\n", listing.entries.size() - shown);
  return text;
}

std::string markdown_listing(const Listing& listing) {
  std::string text = fmt::format("### {}\n\n", listing.title);
  if (listing.entries.empty()) return text + "None.\n";
  text += "```\n";
  for (const std::vector<std::string>& lines : listing.entries) text += fmt::format("{}\n", fmt::join(lines, "\n  "));
  return text + "```\n";
}

/// Where and when: of the run's header.
std::string place_text(const RunData& run) {
  if (run.headers.empty() || run.records.empty()) return "";
  return fmt::format("{}, {}\n\n", device_title(run, run.records.front().device), run.headers.front().started);
}

nlohmann::json json_of(const PlantedPair& pair) {
  nlohmann::json largest;
  if (pair.largest)
    largest = {{"tensor", pair.largest->tensor},
               {"gate", pair.largest->gate},
               {"value", number_to_json(pair.largest->value)},
               {"limit", number_to_json(pair.largest->limit)},
               {"ratio", number_to_json(pair.largest->ratio())}};
  return {{"defect", pair.defect}, {"case", pair.case_line}, {"largest", largest}, {"known", pair.known}};
}

}  // namespace

TextTable defect_table(const Selftest& selftest, size_t most_alarms) {
  TextTable table{
      "Planted defects",
      {{"defect", Column::Side::left},
       {"pairs"},
       {"caught"},
       {"by error"},
       {"equivalent"},
       {"survived"},
       {"caught by (pairs)", Column::Side::left}},
      {},
      1,
      "A pair is a planted backend and a case. By error: caught by a crash, a hang or an exception, and by nothing else.\n"
      "Equivalent: shape and mask prove that the defect cannot show."};
  for (const auto& [defect, row] : rows_of(selftest))
    table.rows.push_back({{defect},
                          {std::to_string(row.caught + row.equivalent + row.survived)},
                          {std::to_string(row.caught), row.caught > row.only_erred ? Tone::good : Tone::plain},
                          {std::to_string(row.only_erred), row.only_erred > 0 ? Tone::warning : Tone::plain},
                          {std::to_string(row.equivalent)},
                          {std::to_string(row.survived), row.unknown > 0    ? Tone::bad
                                                         : row.survived > 0 ? Tone::warning
                                                                            : Tone::plain},
                          {alarms_text(row.alarms, most_alarms)}});
  return table;
}

TextTable gate_table(const Selftest& selftest) {
  TextTable table{
      "What caught them",
      {{"gate or other watch", Column::Side::left}, {"backend", Column::Side::left}, {"pairs it caught"}, {"only it"}},
      {},
      2,
      ""};
  for (const auto& [backend, fates] : fates_of_backends(selftest))
    for (const auto& [gate, counts] : gate_counts(selftest, backend))
      table.rows.push_back({{gate}, {backend}, {std::to_string(counts.caught)}, {std::to_string(counts.alone)}});
  return table;
}

TextTable backend_table(const Selftest& selftest) {
  TextTable table{"Backends with planted defects",
                  {{"backend", Column::Side::left}, {"pairs"}, {"caught"}, {"by error"}, {"equivalent"}, {"survived"}},
                  {},
                  1,
                  ""};
  for (auto& [backend, fates] : fates_of_backends(selftest))
    table.rows.push_back({{backend},
                          {std::to_string(fates[Fate::caught] + fates[Fate::equivalent] + fates[Fate::survived])},
                          {std::to_string(fates[Fate::caught])},
                          {std::to_string(only_erred(selftest, backend))},
                          {std::to_string(fates[Fate::equivalent])},
                          {std::to_string(fates[Fate::survived])}});
  return table;
}

std::string selftest_console(const Selftest& selftest, const TextStyle& style) {
  TextStyle whole = style;
  whole.max_rows = 0;
  std::string text = to_text(defect_table(selftest, kShownAlarms), whole) + "\n" + to_text(backend_table(selftest), whole) +
                     "\n" + to_text(gate_table(selftest), whole);
  for (const Listing& listing : listings_of(selftest))
    if (const std::string lines = console_listing(listing, style); !lines.empty()) text += "\n" + lines;
  return text;
}

std::string selftest_markdown(const RunData& run, const Selftest& selftest) {
  const std::string id = run.headers.empty() ? "" : " " + run.headers.front().run;
  std::string text = fmt::format("# attnbench selftest{}\n\n{}{}\n\n{}\n{}\n{}", id, place_text(run), conclude(selftest).sentence,
                                 to_markdown(defect_table(selftest, 0)), to_markdown(backend_table(selftest)),
                                 to_markdown(gate_table(selftest)));
  for (const Listing& listing : listings_of(selftest)) text += "\n" + markdown_listing(listing);
  return text;
}

std::string selftest_json(const Selftest& selftest) {
  nlohmann::json survivors = nlohmann::json::array(), stale = nlohmann::json::array();
  for (const PlantedPair* pair : survivors_of(selftest)) survivors.push_back(json_of(*pair));
  for (const KnownSurvivor& entry : selftest.stale) stale.push_back({{"defect", entry.defect}, {"case", entry.case_line}});
  const nlohmann::json object = {{"device", selftest.pairs.empty() ? "" : selftest.pairs.front().device},
                                 {"defects", selftest.defects().size()},
                                 {"pairs", selftest.counted_pairs()},
                                 {"caught", selftest.count(Fate::caught)},
                                 {"only_erred", selftest.only_erred()},
                                 {"equivalent", selftest.count(Fate::equivalent)},
                                 {"survivors", survivors},
                                 {"stale", stale},
                                 {"tensors", selftest.tensors},
                                 {"false_alarms", selftest.false_alarms.size()},
                                 {"gates", gates_json(gate_counts(selftest))},
                                 {"backends", backends_json(selftest)}};
  return object.dump(2) + "\n";
}

void write_selftest_reports(const std::filesystem::path& folder, const RunData& run, const Selftest& selftest) {
  write_file(folder / "selftest.md", selftest_markdown(run, selftest));
  write_file(folder / "selftest.json", selftest_json(selftest));
}

}  // namespace attnbench
