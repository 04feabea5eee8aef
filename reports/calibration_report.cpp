#include "reports/calibration_report.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include <fmt/format.h>

namespace attnbench {
namespace {

constexpr size_t kShownAccused = 20;

/// The cells of one class, dtype, gate and tensor, whatever is behind the gate.
struct FactorRow {
  int64_t count = 0, no_power = 0, beyond = 0;
  std::set<std::string> backends;
  double least = 1, largest = 0, max = 0;
};

std::string factors_text(const FactorRow& row) {
  if (row.least == row.largest) return fmt::format("{:.3f}", row.least);
  return fmt::format("{:.3f} to {:.3f}", row.least, row.largest);
}

}  // namespace

TextTable factor_table(const Calibration& calibration) {
  std::map<std::tuple<std::string, std::string, std::string, std::string>, FactorRow> rows;
  for (const auto& [key, cell] : calibration.cells) {
    FactorRow& row = rows[{key.rounds_like, std::string(name_of(key.dtype)), key.gate, key.tensor}];
    row.count += cell.count;
    row.no_power += cell.no_power;
    row.beyond += cell.beyond_formula;
    row.backends.insert(cell.backends.begin(), cell.backends.end());
    row.least = std::min(row.least, cell.factor);
    row.largest = std::max(row.largest, cell.factor);
    row.max = std::max(row.max, cell.max);
  }
  using Side = Column::Side;
  TextTable table{
      "Limits: factor x formula",
      {{"rounds like", Side::left},
       {"dtype", Side::left},
       {"gate", Side::left},
       {"tensor", Side::left},
       {"backends"},
       {"results"},
       {"no power"},
       {"beyond formula"},
       {"largest / formula"},
       {"factor"}},
      {},
      4,
      "Factors differ by how many elements are behind a gate; with too few results, or one backend alone, the factor is 1."};
  for (const auto& [key, row] : rows)
    table.rows.push_back({{std::get<0>(key)},
                          {std::get<1>(key)},
                          {std::get<2>(key)},
                          {std::get<3>(key)},
                          {std::to_string(row.backends.size())},
                          {std::to_string(row.count)},
                          {std::to_string(row.no_power)},
                          {std::to_string(row.beyond), row.beyond > 0 ? Tone::warning : Tone::plain},
                          {fmt::format("{:.3f}", row.max)},
                          {factors_text(row)}});
  return table;
}

TextTable check_table(const CalibrationCheck& check) {
  using Side = Column::Side;
  TextTable table{"Gates on correct implementations",
                  {{"rounds like", Side::left}, {"gate", Side::left}, {"judged"}, {"no power"}, {"alarms"}},
                  {},
                  2,
                  ""};
  for (const auto& [key, counts] : check.gates)
    table.rows.push_back({{key.first},
                          {key.second},
                          {std::to_string(counts.judged)},
                          {std::to_string(counts.no_power)},
                          {std::to_string(counts.alarms), counts.alarms > 0 ? Tone::bad : Tone::plain}});
  return table;
}

std::string calibration_console(const Calibration& calibration, const TextStyle& style) {
  TextStyle all = style;
  all.max_rows = 0;
  return to_text(factor_table(calibration), all);
}

std::string check_console(const CalibrationCheck& check, const TextStyle& style) {
  std::string text = to_text(check_table(check), style);
  if (check.without_power > 0) text += fmt::format("\n{} tensors that no gate had the power to judge\n", check.without_power);
  for (size_t i = 0; i < std::min(check.alarms.size(), kShownAccused); ++i)
    text += fmt::format("\n{}: {}\n  {}\n", check.alarms[i].backend, check.alarms[i].what, check.alarms[i].repro);
  if (check.alarms.size() > kShownAccused) text += fmt::format("\n… and {} more\n", check.alarms.size() - kShownAccused);
  return text;
}

}  // namespace attnbench
