#include "reports/verdict_tables.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "reports/run_view.hpp"

namespace attnbench {
namespace {

using Side = Column::Side;

Cell count_cell(int64_t count, Tone tone = Tone::plain) {
  return count == 0 ? Cell{"·", Tone::dim} : Cell{std::to_string(count), tone};
}

struct StatusColumn {
  Status status;
  Tone tone;
};
constexpr std::array kStatusColumns{StatusColumn{Status::passed, Tone::good},     StatusColumn{Status::failed, Tone::bad},
                                    StatusColumn{Status::mistrusted, Tone::bad},  StatusColumn{Status::unsupported, Tone::dim},
                                    StatusColumn{Status::skipped, Tone::warning}, StatusColumn{Status::error, Tone::bad}};

std::size_t rank_of(const std::vector<std::string>& names, const std::string& name) {
  return static_cast<std::size_t>(std::find(names.begin(), names.end(), name) - names.begin());
}

/// Does every tensor that the rule judged pass it? Unset: the rule judged none.
std::optional<bool> field_verdict(const Record& record, const std::string& rule) {
  std::optional<bool> passed;
  for (const auto& [tensor, errors] : record.errors) {
    const auto found = errors.field_rules.find(rule);
    if (found != errors.field_rules.end()) passed = passed.value_or(true) && found->second.passed;
  }
  return passed;
}

struct Agreement {
  int64_t both_pass = 0, both_fail = 0, only_ours_fails = 0, only_field_fails = 0;
};

}  // namespace

TextTable verdict_counts(const RunData& run) {
  const auto names = backend_names(run);
  std::map<std::tuple<std::size_t, Pass, std::string>, std::map<Status, int64_t>> counts;
  for (const Record& r : run.records) ++counts[{rank_of(names, r.backend), r.pass, dtype_of(r.case_line)}][r.status];

  TextTable table{"Verdicts (records, one for each case, backend and pass)",
                  {{"backend", Side::left}, {"pass", Side::left}, {"dtype", Side::left}, {"judged"}},
                  {},
                  3,
                  ""};
  for (const auto& column : kStatusColumns) table.columns.push_back({std::string(name_of(column.status))});
  for (auto& [key, by_status] : counts) {
    const auto& [backend, pass, dtype] = key;
    std::vector<Cell> row{{names[backend]}, {std::string(name_of(pass))}, {dtype}};
    row.push_back(count_cell(by_status[Status::passed] + by_status[Status::failed] + by_status[Status::mistrusted]));
    for (const auto& column : kStatusColumns) row.push_back(count_cell(by_status[column.status], column.tone));
    table.rows.push_back(std::move(row));
  }
  return table;
}

std::vector<std::string> safety_flags(const RunData& run) {
  std::vector<std::string> sentences;
  std::map<std::string, int64_t> counts;
  for (const Record& r : run.records) {
    const Safety& s = r.safety;
    if (!s.sm_below_8 && !s.backward_d_above_64_sm_below_8 && s.verdict == "ok") continue;
    const std::optional<int> judged = s.assumed_sm ? s.assumed_sm : r.sm;
    const std::string sm =
        judged ? fmt::format(" on {}SM {}.{}", s.assumed_sm ? "an assumed " : "", *judged / 10, *judged % 10) : "";
    std::string sentence = fmt::format("{} {}{}: ", r.backend, name_of(r.pass), sm);
    if (s.sm_below_8)
      sentence += s.backward_d_above_64_sm_below_8 ? "a backward with a head dim above 64 on SM < 8; " : "SM < 8; ";
    sentence += "verdict " + s.verdict;
    if (!s.reason.empty()) sentence += ": " + s.reason;
    if (!s.source.empty()) sentence += " [" + s.source + "]";
    if (++counts[sentence] == 1) sentences.push_back(sentence);
  }
  for (std::string& sentence : sentences) {
    const int64_t count = counts[sentence];
    sentence += fmt::format(" ({} record{})", count, count == 1 ? "" : "s");
  }
  return sentences;
}

std::vector<std::string> layer_choices(const RunData& run) {
  std::vector<std::pair<std::string, int64_t>> counts;  // in the order of the records
  for (const Record& r : run.records) {
    if (r.choice.empty()) continue;
    const auto same = std::find_if(counts.begin(), counts.end(), [&](const auto& one) { return one.first == r.choice; });
    ++(same == counts.end() ? counts.emplace_back(r.choice, 0) : *same).second;
  }
  std::vector<std::string> sentences;
  for (const auto& [choice, count] : counts)
    sentences.push_back(fmt::format("{} ({} record{})", choice, count, count == 1 ? "" : "s"));
  return sentences;
}

TextTable field_rule_counts(const RunData& run) {
  const auto names = backend_names(run);
  std::map<std::pair<std::size_t, std::string>, Agreement> counts;
  for (const Record& record : run.records) {
    const bool judged = record.status == Status::passed || record.status == Status::failed;
    if (!judged || record.expect != Expect::equal) continue;
    std::map<std::string, bool> rules;
    for (const auto& [tensor, errors] : record.errors) {
      for (const auto& [rule, verdict] : errors.field_rules) rules[rule] = true;
    }
    for (const auto& [rule, present] : rules) {
      Agreement& agreement = counts[{rank_of(names, record.backend), rule}];
      const bool ours = record.status == Status::passed, field = *field_verdict(record, rule);
      ++(ours ? (field ? agreement.both_pass : agreement.only_field_fails)
              : (field ? agreement.only_ours_fails : agreement.both_fail));
    }
  }
  TextTable table{"The field's rule beside ours (records)",
                  {{"backend", Side::left},
                   {"rule", Side::left},
                   {"both pass"},
                   {"both fail"},
                   {"fails ours only"},
                   {"fails the field's only"},
                   {"judged differently"}},
                  {},
                  2,
                  ""};
  for (const auto& [key, a] : counts) {
    table.rows.push_back({{names[key.first]},
                          {key.second},
                          count_cell(a.both_pass),
                          count_cell(a.both_fail),
                          count_cell(a.only_ours_fails),
                          count_cell(a.only_field_fails),
                          count_cell(a.only_ours_fails + a.only_field_fails)});
  }
  return table;
}

TextTable no_power_counts(const RunData& run) {
  const auto names = backend_names(run);
  std::map<std::tuple<std::size_t, std::string, std::string>, std::pair<int64_t, int64_t>> counts;  // without power, all
  for (const Record& record : run.records) {
    for (const auto& [tensor, errors] : record.errors) {
      for (const auto& [name, gate] : errors.gates) {
        auto& [without, all] = counts[{rank_of(names, record.backend), tensor, name}];
        ++all;
        if (gate.verdict == Gate::Verdict::no_power) ++without;
      }
    }
  }
  TextTable table{"Gates without power to judge",
                  {{"backend", Side::left}, {"tensor", Side::left}, {"gate", Side::left}, {"no power"}, {"of"}},
                  {},
                  3,
                  ""};
  for (const auto& [key, count] : counts) {
    if (count.first == 0) continue;
    const auto& [backend, tensor, gate] = key;
    table.rows.push_back({{names[backend]}, {tensor}, {gate}, count_cell(count.first), count_cell(count.second)});
  }
  return table;
}

TextTable reason_counts(const RunData& run) {
  const auto names = backend_names(run);
  std::map<std::tuple<std::size_t, Status, Pass, std::string>, int64_t> counts;
  for (const Record& r : run.records) {
    if (r.status == Status::unsupported || r.status == Status::skipped) {
      ++counts[{rank_of(names, r.backend), r.status, r.pass, r.reason}];
    }
  }
  TextTable table{"Unsupported and skipped",
                  {{"backend", Side::left}, {"pass", Side::left}, {"status", Side::left}, {"records"}, {"reason", Side::left}},
                  {},
                  5,
                  ""};
  std::vector<std::pair<std::tuple<std::size_t, Status, Pass, std::string>, int64_t>> sorted(counts.begin(), counts.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    const auto backend_a = std::get<0>(a.first), backend_b = std::get<0>(b.first);
    return backend_a != backend_b ? backend_a < backend_b : a.second > b.second;
  });
  for (const auto& [key, count] : sorted) {
    const auto& [backend, status, pass, reason] = key;
    table.rows.push_back(
        {{names[backend]}, {std::string(name_of(pass))}, {std::string(name_of(status))}, count_cell(count), {reason}});
  }
  return table;
}

}  // namespace attnbench
