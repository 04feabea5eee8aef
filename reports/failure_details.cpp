#include "reports/failure_details.hpp"

#include <algorithm>
#include <cmath>
#include <sstream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/errors.hpp"
#include "reports/numbers.hpp"
#include "reports/text_table.hpp"

namespace attnbench {
namespace {

constexpr size_t kShownMapRows = 6, kShownPlaces = 3, kShownAlike = 3;

using FailedTensor = std::pair<std::string, const TensorErrors*>;

/// A gradient that is judged given O failed as that; its end-to-end twin is told only where it fails alone.
std::vector<FailedTensor> failed_tensors(const Record& record) {
  std::vector<FailedTensor> failed;
  for (const auto& [tensor, errors] : record.errors) {
    const auto given = record.errors.find(tensor + "_given_o");
    const bool told_by_twin = given != record.errors.end() && given->second.failure;
    if (errors.failure && !told_by_twin) failed.emplace_back(tensor, &errors);
  }
  return failed;
}

/// That with the fewest bad elements, none apart: where they are says most.
const FailedTensor& most_telling(const std::vector<FailedTensor>& failed) {
  return *std::ranges::min_element(failed, {}, [](const FailedTensor& tensor) {
    return tensor.second->bad == 0 ? INFINITY : double(tensor.second->bad) / double(tensor.second->elements);
  });
}

bool over_keys(const std::string& tensor) {
  return tensor.starts_with("dk") || tensor.starts_with("dv");
}

/// "31.2 / 6.5".
std::string beside_limit(const TensorErrors& errors, std::initializer_list<const char*> gates) {
  for (const char* name : gates)
    if (const auto gate = errors.gates.find(name); gate != errors.gates.end())
      return fmt::format("{} / {}", significant(gate->second.value), significant(gate->second.limit));
  return significant(errors.max_z);
}

std::string gates_that_fail(const TensorErrors& errors) {
  std::vector<std::string> names;
  for (const auto& [name, gate] : errors.gates)
    if (gate.verdict == Gate::Verdict::fail) names.push_back(name);
  return fmt::format("{}", fmt::join(names, " "));
}

std::vector<std::string> table_lines(const std::vector<FailedTensor>& failed) {
  using Side = Column::Side;
  TextTable table{"",
                  {{"tensor", Side::left},
                   {"max abs"},
                   {"rel-L2"},
                   {"cosine"},
                   {"ulp p50"},
                   {"p99"},
                   {"p99.9"},
                   {"max"},
                   {"max|z| / limit"},
                   {"RMS ratio"},
                   {"bias"},
                   {"bad"},
                   {"of"},
                   {"gates that fail", Side::left}},
                  {},
                  1,
                  ""};
  for (const auto& [tensor, errors] : failed) {
    const TensorFailure& f = *errors->failure;
    table.rows.push_back({{tensor},
                          {significant(errors->max_abs)},
                          {significant(errors->rel_l2)},
                          {fmt::format("{:.5f}", errors->cosine)},
                          {significant(f.ulp_p50)},
                          {significant(f.ulp_p99)},
                          {significant(f.ulp_p999)},
                          {significant(f.ulp_max)},
                          {beside_limit(*errors, {"z", "lse"})},
                          {f.rms_ratio > 0 ? significant(f.rms_ratio) : "·"},
                          {significant(f.gain)},
                          {std::to_string(errors->bad)},
                          {std::to_string(errors->elements)},
                          {gates_that_fail(*errors)}});
  }
  std::vector<std::string> lines;
  std::istringstream text(to_text(table, {.colour = false, .width = 1000, .max_rows = 0}));
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

std::string kind_of_values(const TensorErrors& errors) {
  const TensorFailure& f = *errors.failure;
  std::vector<std::string> parts;
  if (f.nans > 0) parts.push_back(fmt::format("{} NaN", f.nans));
  if (f.infinities > 0) parts.push_back(fmt::format("{} infinite", f.infinities));
  if (f.zeros > 0) parts.push_back(fmt::format("{} zero", f.zeros));
  return parts.empty() ? "" : fmt::format(" ({})", fmt::join(parts, ", "));
}

std::string place_text(const std::string& tensor, const TensorErrors& errors) {
  const BadPattern& p = errors.failure->pattern;
  if (errors.bad == 0) return fmt::format("{}: no element alone is bad: small errors in many", tensor);
  if (p.rows_hit == 0) return fmt::format("{}: in padded rows alone", tensor);
  if (p.text.empty())
    return fmt::format("{}: no pattern: {} of {} elements{}, in {} of {} rows", tensor, errors.bad, errors.elements,
                       kind_of_values(errors), p.rows_hit, p.rows);
  if (errors.bad == 1 && p.explained == 1) return fmt::format("{}: a single element", tensor);
  if (p.elements == errors.elements)
    return fmt::format("{}: {}: {} of {}{}", tensor, p.text, errors.bad, errors.elements, kind_of_values(errors));
  return fmt::format("{}: {}: explains {} of {} bad elements{}; {} of its {} are bad", tensor, p.text, p.explained, errors.bad,
                     kind_of_values(errors), p.explained, p.elements);
}

std::vector<std::string> place_lines(const std::vector<FailedTensor>& failed) {
  std::vector<std::string> lines;
  for (const auto& [tensor, errors] : failed)
    if (lines.size() < kShownPlaces) lines.push_back((lines.empty() ? "where  " : "       ") + place_text(tensor, *errors));
  if (failed.size() > kShownPlaces) lines.push_back(fmt::format("       and {} more", failed.size() - kShownPlaces));
  return lines;
}

std::string element_line(const char* head, const std::string& tensor, const Element& e, double got, double expected,
                         double sigma) {
  return fmt::format("{}  {} [{}] got {:.6g}, expected {:.6g}, sigma {}", head, tensor, element_place(tensor, e), got, expected,
                     significant(sigma));
}

std::vector<std::string> element_lines(const FailedTensor& chief) {
  const auto& [tensor, errors] = chief;
  const TensorFailure& f = *errors->failure;
  std::vector<std::string> lines;
  if (errors->worst)
    lines.push_back(element_line("worst", tensor, *errors->worst, errors->worst_got, errors->worst_expected, f.worst_sigma));
  if (errors->first_bad && errors->first_bad != errors->worst)
    lines.push_back(element_line("first", tensor, *errors->first_bad, f.first_got, f.first_expected, f.first_sigma));
  return lines;
}

const char* shade_of(double share) {
  if (share < 0) return " ";
  if (share == 0) return "·";
  return share <= 0.25 ? "░" : share <= 0.5 ? "▒" : share <= 0.75 ? "▓" : "█";
}

/// "3" or "4..7": the sequences, or heads, of row `index`; the last row of a map may have fewer.
std::string range_text(int64_t index, int64_t per_row) {
  return per_row == 1 ? std::to_string(index) : fmt::format("{}..{}", index * per_row, (index + 1) * per_row - 1);
}

/// Rows of the map that hold something, at most kShownMapRows, in their order; all rows where those are few.
std::vector<size_t> shown_rows(const HeatMap& map) {
  std::vector<size_t> rows;
  for (size_t row = 0; row < map.cells.size(); ++row) {
    const bool holds = std::ranges::any_of(map.cells[row], [](double cell) { return cell > 0; });
    if (map.cells.size() <= kShownMapRows || (holds && rows.size() < kShownMapRows)) rows.push_back(row);
  }
  return rows;
}

std::vector<std::string> map_lines(const std::string& tensor, const TensorErrors& errors, const std::string& case_line) {
  const HeatMap& map = errors.failure->map;
  if (map.cells.empty()) return {};
  const bool counts_bad = map.measure == "percent_bad";
  double largest = 0;
  for (const auto& row : map.cells)
    for (const double cell : row) largest = std::max(largest, cell);
  const double full = counts_bad ? 100 : largest;
  const Problem problem = parse_case(case_line, "record").problem;
  const int64_t heads = over_keys(tensor) ? problem.hkv : problem.hq;
  const int64_t rows_of_heads = (heads + map.heads_per_row - 1) / map.heads_per_row;
  const auto plural = [](int64_t n, const char* one, const char* many) { return fmt::format("{} {}", n, n == 1 ? one : many); };
  std::vector<std::string> lines{fmt::format(
      "map    {}: a column is {} of each sequence; {}: · none ░ ▒ ▓ █ up to a quarter, half, 3/4, all of {}", tensor,
      plural(map.tokens_per_column, over_keys(tensor) ? "key" : "query", over_keys(tensor) ? "keys" : "queries"),
      counts_bad ? "bad elements" : "RMS(z)", counts_bad ? "a cell" : fmt::format("the largest cell, {}", significant(largest)))};
  const std::vector<size_t> rows = shown_rows(map);
  for (const size_t row : rows) {
    std::string cells;
    for (const double cell : map.cells[row]) cells += shade_of(full > 0 ? cell / full : cell);
    const auto index = int64_t(row);
    lines.push_back(fmt::format("       sequence {:<{}} head {:<{}} {}", range_text(index / rows_of_heads, map.sequences_per_row),
                                map.sequences_per_row == 1 ? 2 : 7, range_text(index % rows_of_heads, map.heads_per_row),
                                map.heads_per_row == 1 ? 2 : 7, cells));
  }
  if (rows.size() < map.cells.size()) lines.push_back(fmt::format("       and {} more rows", map.cells.size() - rows.size()));
  return lines;
}

/// Read once; empty where it cannot be read.
const SignatureBook& known_defects() {
  static const SignatureBook book = [] {
    try {
      return read_signatures("");
    } catch (const UsageError&) {
      return SignatureBook{};
    }
  }();
  return book;
}

void append(std::vector<std::string>& lines, const std::vector<std::string>& more) {
  lines.insert(lines.end(), more.begin(), more.end());
}

}  // namespace

bool has_failure_details(const Record& record) {
  return std::ranges::any_of(record.errors, [](const auto& named) { return named.second.failure.has_value(); });
}

std::string likely_mistake(const Record& record, const SignatureBook& book) {
  const auto signature = failure_signature(record);
  if (!signature) return "";
  const std::vector<Resemblance> order = resemblances(book, *signature);
  if (order.empty()) return "likely unknown: there is no list of known defects (cases/signatures.json)";
  const Resemblance& nearest = order.front();
  if (!is_alike(order)) return fmt::format("likely unlike any known defect (the nearest is {:.1f} away)", nearest.distance);
  const auto what = book.defects.find(nearest.defect);
  std::string line = fmt::format("likely {}{} (distance {:.1f})", nearest.defect,
                                 what == book.defects.end() || what->second.empty() ? "" : ": " + what->second, nearest.distance);
  std::vector<std::string> alike;
  for (size_t i = 1; i < order.size() && order[i].distance <= nearest.distance + kAsNear; ++i) alike.push_back(order[i].defect);
  if (alike.empty()) return line;
  const size_t more = alike.size() > kShownAlike ? alike.size() - kShownAlike : 0;
  alike.resize(alike.size() - more);
  return line + fmt::format("; as near: {}{}", fmt::join(alike, ", "), more > 0 ? fmt::format(" and {} more", more) : "");
}

std::vector<std::string> failure_details(const Record& record, bool with_map) {
  const std::vector<FailedTensor> failed = failed_tensors(record);
  const FailedTensor& chief = most_telling(failed);
  std::vector<std::string> lines = table_lines(failed);
  append(lines, element_lines(chief));
  append(lines, place_lines(failed));
  if (with_map) append(lines, map_lines(chief.first, *chief.second, record.case_line));
  if (const std::string likely = likely_mistake(record, known_defects()); !likely.empty()) lines.push_back(likely);
  return lines;
}

}  // namespace attnbench
