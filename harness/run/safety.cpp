#include "harness/run/safety.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <utility>

#include "harness/run/data_files.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/json_reader.hpp"
#include "harness/run/names.hpp"
#include "harness/run/version.hpp"

namespace attnbench {
namespace {

/// One row of cases/safety.json, which says what its fields mean.
struct SafetyRow {
  std::string implementation;
  std::string from, to;  ///< versions, inclusive; empty: open
  std::vector<std::pair<int, int>> sm;
  std::string pass;   ///< "any" or "backward"
  std::string dtype;  ///< "any" or a dtype's name
  int64_t min_head_dim = 0, max_head_dim = 0;
  bool only_with_dropout = false;
  std::string verdict, reason, source;
};

SafetyRow row_from(const JsonReader& reader) {
  SafetyRow row{.implementation = reader.text("implementation"),
                .from = reader.text("from"),
                .to = reader.text("to"),
                .sm = {},
                .pass = reader.text("pass"),
                .dtype = reader.text("dtype"),
                .min_head_dim = reader.integer("min_head_dim"),
                .max_head_dim = reader.integer("max_head_dim"),
                .only_with_dropout = reader.boolean("only_with_dropout"),
                .verdict = reader.text("verdict"),
                .reason = reader.text("reason"),
                .source = reader.text("source")};
  for (const auto& range : reader.array("sm")) row.sm.push_back(range.get<std::pair<int, int>>());
  const bool known = (row.pass == "any" || row.pass == "backward") && (row.dtype == "any" || find_value<Dtype>(row.dtype)) &&
                     (row.verdict == "refused" || row.verdict == "silently_unsafe");
  if (!known) throw std::runtime_error(reader.field("pass, dtype or verdict") + ": not one of the values that the file names");
  return row;
}

std::vector<SafetyRow> read_table() {
  const auto file = cases_folder() / "safety.json";
  try {
    const auto json = nlohmann::json::parse(std::ifstream(file));
    const JsonReader table(json, "table");
    std::vector<SafetyRow> rows;
    for (const auto& row : table.array("rows")) rows.push_back(row_from(JsonReader(row, fmt::format("rows[{}]", rows.size()))));
    return rows;
  } catch (const std::exception& error) {
    throw UsageError(fmt::format("{}: the safety table cannot be read: {}", file.string(), error.what()));
  }
}

bool speaks_of(const SafetyRow& row, const SafetyQuery& query) {
  const bool sm = std::ranges::any_of(row.sm, [&](auto range) { return *query.sm >= range.first && *query.sm <= range.second; });
  return sm && row.implementation == query.implementation &&
         (row.from.empty() || compare_versions(query.version, row.from) >= 0) &&
         (row.to.empty() || compare_versions(query.version, row.to) <= 0) && (row.pass == "any" || query.backward) &&
         (row.dtype == "any" || row.dtype == name_of(query.dtype)) && query.head_dim >= row.min_head_dim &&
         query.head_dim <= row.max_head_dim && (!row.only_with_dropout || query.dropout);
}

}  // namespace

Safety safety(const SafetyQuery& query) {
  Safety result;
  if (!query.sm) return result;
  result.seed_rule = *query.sm < 80;
  result.mission_rule = query.backward && query.head_dim > 64 && *query.sm < 80;
  static const std::vector<SafetyRow> table = read_table();
  const auto row = std::ranges::find_if(table, [&](const SafetyRow& row) { return speaks_of(row, query); });
  if (row == table.end()) return result;
  result.verdict = row->verdict;
  result.reason = row->reason;
  result.source = row->source;
  return result;
}

}  // namespace attnbench
