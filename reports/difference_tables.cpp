#include "reports/difference_tables.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include <fmt/format.h>

#include "reports/numbers.hpp"
#include "reports/run_view.hpp"

namespace attnbench {
namespace {

using Side = Column::Side;

struct Largest {
  double max_abs = 0, rel_l2 = 0;
  std::set<std::string> cases;
};

/// The larger of two; NaN is larger than everything: a difference that is not a number must not disappear.
double worse(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return NAN;
  return std::max(a, b);
}

using Pairs = std::map<std::pair<std::string, std::string>, Largest>;

const Largest* find_pair(const Pairs& pairs, const std::string& a, const std::string& b) {
  auto found = pairs.find({a, b});
  if (found == pairs.end()) found = pairs.find({b, a});
  return found == pairs.end() ? nullptr : &found->second;
}

std::size_t rank_of_tensor(const std::string& tensor) {
  static const std::vector<std::string> order{"o", "lse", "dq", "dk", "dv"};
  return static_cast<std::size_t>(std::find(order.begin(), order.end(), tensor) - order.begin());
}

TextTable table_of(const std::string& dtype, const std::string& tensor, const Pairs& pairs, std::vector<std::string> names) {
  std::erase_if(names, [&](const std::string& name) {
    return std::none_of(pairs.begin(), pairs.end(),
                        [&](const auto& p) { return p.first.first == name || p.first.second == name; });
  });
  std::size_t cases = 0;
  for (const auto& [pair, largest] : pairs) cases = std::max(cases, largest.cases.size());
  TextTable table{fmt::format("Largest differences of {}, {} ({} case{})", tensor, dtype, cases, cases == 1 ? "" : "s"),
                  {{"rel. L2 below, max |a-b| above", Side::left}},
                  {},
                  1,
                  ""};
  for (const std::string& name : names) table.columns.push_back({name});
  for (std::size_t i = 0; i < names.size(); ++i) {
    std::vector<Cell> row{{names[i]}};
    for (std::size_t j = 0; j < names.size(); ++j) {
      const Largest* largest = i == j ? nullptr : find_pair(pairs, names[i], names[j]);
      row.push_back(largest ? Cell{significant(j > i ? largest->max_abs : largest->rel_l2)} : Cell{"·", Tone::dim});
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

}  // namespace

std::vector<TextTable> difference_tables(const RunData& run) {
  std::map<std::tuple<std::string, std::size_t, std::string>, Pairs> by_tensor;  // dtype, rank, tensor
  for (const Comparison& comparison : run.comparisons) {
    const std::string dtype = dtype_of(comparison.case_line);
    for (const Difference& d : comparison.differences) {
      Largest& largest = by_tensor[{dtype, rank_of_tensor(d.tensor), d.tensor}][std::minmax(d.a, d.b)];
      largest.max_abs = worse(largest.max_abs, d.max_abs);
      largest.rel_l2 = worse(largest.rel_l2, d.rel_l2);
      largest.cases.insert(comparison.case_line);
    }
  }
  const auto names = backend_names(run);
  std::vector<TextTable> tables;
  for (const auto& [key, pairs] : by_tensor) tables.push_back(table_of(std::get<0>(key), std::get<2>(key), pairs, names));
  return tables;
}

}  // namespace attnbench
