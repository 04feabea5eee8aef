#include "harness/run/selftest.hpp"

#include <algorithm>
#include <limits>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/data_files.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/files.hpp"
#include "harness/run/json_reader.hpp"
#include "harness/run/planted.hpp"

namespace attnbench {
namespace {

using Records = std::vector<const Record*>;

bool is_accused(const Record& record) {
  return record.status == Status::failed || record.status == Status::error;
}

bool is_equivalent(const Record& record) {
  return record.status == Status::unsupported && record.reason.starts_with(kEquivalent);
}

Fate fate_of(const Records& passes) {
  if (std::ranges::any_of(passes, [](const Record* record) { return is_accused(*record); })) return Fate::caught;
  if (std::ranges::any_of(passes, [](const Record* record) { return is_judged(*record); })) return Fate::survived;
  const bool equivalent = std::ranges::any_of(passes, [](const Record* record) { return is_equivalent(*record); });
  return equivalent ? Fate::equivalent : Fate::outside;
}

/// Where the judge came nearest to seeing the defect.
void add_nearest(const Records& passes, PlantedPair& pair) {
  for (const Record* record : passes) {
    if (!is_judged(*record)) continue;
    if (pair.repro.empty()) pair.repro = record->repro;
    for (const auto& [tensor, errors] : record->errors)
      for (const auto& [name, gate] : errors.gates) {
        const Statistic statistic{tensor, name, gate.value, gate.limit};
        if (gate.verdict == Gate::Verdict::no_power) continue;
        if (pair.largest && statistic.ratio() <= pair.largest->ratio()) continue;
        pair.largest = statistic;
        pair.repro = record->repro;
      }
  }
}

/// Why no gate speaks of it.
void add_reason(const Records& passes, PlantedPair& pair) {
  const auto found =
      std::ranges::find_if(passes, [&](const Record* record) { return !pair.only_erred || record->status == Status::error; });
  pair.reason = (*found)->reason;
  pair.repro = (*found)->repro;
}

PlantedPair settle_pair(const std::string& defect, const std::string& case_line, const Records& passes) {
  PlantedPair pair{defect, case_line, passes.front()->device, fate_of(passes), false, {}, {}, {}, false, {}};
  pair.only_erred = pair.fate == Fate::caught && std::ranges::find(passes, Status::failed, &Record::status) == passes.end();
  if (pair.only_erred || pair.fate == Fate::equivalent || pair.fate == Fate::outside) add_reason(passes, pair);
  if (pair.fate == Fate::caught)
    for (const Record* record : passes) pair.alarms.merge(alarms_of(*record));
  if (pair.fate == Fate::survived) add_nearest(passes, pair);
  return pair;
}

void judge_sound(const Record& record, Selftest& selftest) {
  if (is_judged(record)) selftest.tensors += static_cast<int64_t>(record.errors.size());
  std::map<std::string, std::vector<std::string>> gates_of_tensor;  // "": what is no tensor's
  for (const Alarm& alarm : alarms_of(record)) gates_of_tensor[alarm.tensor].push_back(alarm.gate);
  for (const auto& [tensor, gates] : gates_of_tensor)
    selftest.false_alarms.push_back({record.backend,
                                     fmt::format("{}{}{}", fmt::join(gates, ", "), tensor.empty() ? "" : " of ", tensor),
                                     record.case_line, record.repro});
}

KnownSurvivor known_survivor_from(const JsonReader& in) {
  const std::string defect = in.text("defect");
  if (!is_planted(defect))
    throw std::runtime_error(
        fmt::format("{}: expected BACKEND:DEFECT, as in flash_varlen:last_key_dropped, got {}", in.field("defect"), defect));
  const std::string device = in.has("device") ? in.one_of("device", {"cpu", "cuda"}) : "cpu";
  return {defect, format_case(parse_case(in.text("case"), in.field("case"))), in.has("why") ? in.text("why") : "", device,
          in.has("sometimes") && in.boolean("sometimes")};
}

void compare_with_known(const std::vector<KnownSurvivor>& known, Selftest& selftest) {
  for (const KnownSurvivor& entry : known) {
    const auto pair = std::ranges::find_if(selftest.pairs, [&](const PlantedPair& candidate) {
      return candidate.defect == entry.defect && candidate.case_line == entry.case_line &&
             candidate.device.starts_with(entry.device);
    });
    if (pair == selftest.pairs.end() || pair->fate == Fate::outside) continue;
    pair->known = true;
    if (pair->fate != Fate::survived && !entry.sometimes) selftest.stale.push_back(entry);
  }
}

std::string plural(int64_t count, const std::string& one, const std::string& many) {
  return fmt::format("{} {}", count, count == 1 ? one : many);
}

}  // namespace

double Statistic::ratio() const {
  if (limit > 0) return value / limit;
  return value > 0 ? std::numeric_limits<double>::infinity() : 0;
}

std::set<std::string> Selftest::defects() const {
  std::set<std::string> names;
  for (const PlantedPair& pair : pairs)
    if (pair.fate != Fate::outside) names.insert(defect_of(pair.defect));
  return names;
}

int64_t Selftest::count(Fate fate) const {
  return std::ranges::count(pairs, fate, &PlantedPair::fate);
}

int64_t Selftest::only_erred() const {
  return std::ranges::count(pairs, true, &PlantedPair::only_erred);
}

int64_t Selftest::counted_pairs() const {
  return static_cast<int64_t>(pairs.size()) - count(Fate::outside);
}

std::vector<KnownSurvivor> read_known_survivors(const std::filesystem::path& file) {
  const std::filesystem::path path = file.empty() ? cases_folder() / "known_survivors.json" : file;
  try {
    const nlohmann::json json = read_json(path);
    std::vector<KnownSurvivor> known;
    for (const auto& entry : JsonReader(json, "list").array("survivors"))
      known.push_back(known_survivor_from(JsonReader(entry, fmt::format("survivors[{}]", known.size()))));
    return known;
  } catch (const std::exception& error) {
    throw UsageError(fmt::format("{}: the list of known survivors cannot be read: {}", path.string(), error.what()));
  }
}

Selftest evaluate_selftest(const RunData& run, const std::vector<KnownSurvivor>& known) {
  Selftest selftest;
  std::map<std::pair<std::string, std::string>, size_t> place;  // of a pair among the passes
  std::vector<std::pair<std::pair<std::string, std::string>, Records>> passes;
  for (const Record& record : run.records) {
    if (!is_planted(record.backend)) {
      judge_sound(record, selftest);
      continue;
    }
    const std::pair key(record.backend, record.case_line);
    const auto [found, is_new] = place.try_emplace(key, passes.size());
    if (is_new) passes.push_back({key, {}});
    passes[found->second].second.push_back(&record);
  }
  for (const auto& [key, records] : passes) selftest.pairs.push_back(settle_pair(key.first, key.second, records));
  compare_with_known(known, selftest);
  return selftest;
}

GateResult conclude(const Selftest& selftest) {
  const int64_t survived = selftest.count(Fate::survived);
  const int64_t unknown =
      std::ranges::count_if(selftest.pairs, [](const PlantedPair& pair) { return pair.fate == Fate::survived && !pair.known; });
  const auto stale = static_cast<int64_t>(selftest.stale.size()), alarms = static_cast<int64_t>(selftest.false_alarms.size());
  const std::string counts = fmt::format(
      "{} of {}: {} caught{}, {} equivalent, {} survived, {} of them known; {} in {} of sound backends",
      plural(selftest.counted_pairs(), "pair", "pairs"),
      plural(static_cast<int64_t>(selftest.defects().size()), "planted defect", "planted defects"), selftest.count(Fate::caught),
      selftest.only_erred() > 0 ? fmt::format(" ({} by an error alone)", selftest.only_erred()) : "",
      selftest.count(Fate::equivalent), survived, survived - unknown, plural(alarms, "false alarm", "false alarms"),
      plural(selftest.tensors, "judged tensor", "judged tensors"));
  std::vector<std::string> faults;
  if (unknown > 0) faults.push_back(plural(unknown, "survivor is not known", "survivors are not known"));
  if (stale > 0) faults.push_back(plural(stale, "known survivor survives no more", "known survivors survive no more"));
  if (alarms > 0) faults.push_back(plural(alarms, "false alarm", "false alarms"));
  if (!faults.empty()) return {kExitGate, fmt::format("FAILED: {}: {}", fmt::join(faults, ", "), counts)};
  if (selftest.count(Fate::caught) + survived > 0) return {kExitOk, "passed: " + counts};
  return {kExitAllSkipped, "nothing to judge: no defect could show on these cases: " + counts};
}

}  // namespace attnbench
