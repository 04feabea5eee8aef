#include "harness/run/safety.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "harness/run/data_files.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/files.hpp"
#include "harness/run/json_reader.hpp"
#include "harness/run/names.hpp"
#include "harness/run/version.hpp"

namespace attnbench {
namespace {

std::vector<std::pair<int, int>> sm_ranges(const JsonReader& reader) {
  std::vector<std::pair<int, int>> ranges;
  for (const auto& range : reader.array("sm")) {
    if (!range.is_array() || range.size() != 2)
      throw std::runtime_error(
          fmt::format("{}: expected pairs of the first and the last, got {}", reader.field("sm"), to_text(range)));
    ranges.emplace_back(integer_from_json(range[0], reader.field("sm")), integer_from_json(range[1], reader.field("sm")));
  }
  return ranges;
}

SafetyRule rule_from(const JsonReader& reader) {
  reader.text("source");  // a rule without one would be a rumour
  return {.sm = sm_ranges(reader),
          .only_backward = reader.one_of("pass", {"any", "backward"}) == "backward",
          .min_head_dim = reader.integer("min_head_dim")};
}

SafetyRow row_from(const JsonReader& reader) {
  return {.implementation = reader.text("implementation"),
          .from = reader.text("from"),
          .to = reader.text("to"),
          .sm = sm_ranges(reader),
          .pass = reader.one_of("pass", {"any", "backward"}),
          .dtype = reader.one_of("dtype", {"any", "bf16", "fp16", "fp32"}),
          .min_head_dim = reader.integer("min_head_dim"),
          .max_head_dim = reader.integer("max_head_dim"),
          .only_with_dropout = reader.boolean("only_with_dropout"),
          .verdict = reader.one_of("verdict", {"refused", "silently_unsafe"}),
          .reason = reader.text("reason"),
          .source = reader.text("source")};
}

SafetyTable read_table() {
  const auto file = cases_folder() / "safety.json";
  try {
    const auto json = read_json(file);
    const JsonReader in(json, "table"), rules = in.object("rules");
    SafetyTable table{rule_from(rules.object("sm_below_8")), rule_from(rules.object("backward_d_above_64_sm_below_8")), {}};
    for (const auto& row : in.array("rows"))
      table.rows.push_back(row_from(JsonReader(row, fmt::format("rows[{}]", table.rows.size()))));
    return table;
  } catch (const std::exception& error) {
    throw UsageError(fmt::format("{}: the safety table cannot be read: {}", file.string(), error.what()));
  }
}

bool covers(const std::vector<std::pair<int, int>>& ranges, int sm) {
  return std::ranges::any_of(ranges, [&](auto range) { return sm >= range.first && sm <= range.second; });
}

bool speaks_of(const SafetyRule& rule, const SafetyQuery& query) {
  return covers(rule.sm, *query.sm) && query.head_dim >= rule.min_head_dim && (query.backward || !rule.only_backward);
}

bool speaks_of(const SafetyRow& row, const SafetyQuery& query) {
  return covers(row.sm, *query.sm) && row.implementation == query.implementation &&
         (row.from.empty() || compare_versions(query.version, row.from) >= 0) &&
         (row.to.empty() || compare_versions(query.version, row.to) <= 0) && (row.pass == "any" || query.backward) &&
         (row.dtype == "any" || row.dtype == name_of(query.dtype)) && query.head_dim >= row.min_head_dim &&
         query.head_dim <= row.max_head_dim && (!row.only_with_dropout || query.dropout);
}

}  // namespace

SafetyQuery safety_query(const Problem& problem, Pass pass, std::optional<int> sm) {
  return {.sm = sm,
          .head_dim = std::max(problem.d, problem.dv),
          .dtype = problem.dtype,
          .backward = pass == Pass::backward,
          .dropout = problem.dropout.p > 0,
          .implementation = "",
          .version = ""};
}

const SafetyTable& safety_table() {
  static const SafetyTable table = read_table();
  return table;
}

Safety safety(const SafetyQuery& query, const SafetyTable& table) {
  Safety result;
  if (!query.sm) return result;
  result.sm_below_8 = speaks_of(table.sm_below_8, query);
  result.backward_d_above_64_sm_below_8 = speaks_of(table.backward_d_above_64_sm_below_8, query);
  const auto row = std::ranges::find_if(table.rows, [&](const SafetyRow& row) { return speaks_of(row, query); });
  if (row == table.rows.end()) return result;
  result.verdict = row->verdict;
  result.reason = row->reason;
  result.source = row->source;
  return result;
}

}  // namespace attnbench
