#include "reports/advice.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "harness/run/data_files.hpp"
#include "harness/run/files.hpp"
#include "harness/run/json_reader.hpp"
#include "harness/run/run_data.hpp"

namespace attnbench {
namespace {

Advice advice_from(const JsonReader& reader) {
  Advice row{.backends = reader.texts("backends"),
             .device = reader.one_of("device", {"any", "cpu", "cuda"}),
             .pass = reader.one_of("pass", {"any", "forward", "backward"}),
             .status = reader.one_of("status", {"failed", "error", "mistrusted"}),
             .tells = reader.texts("tells"),
             .cause = reader.text("cause"),
             .advice = reader.text("advice"),
             .source = reader.text("source")};
  if (row.backends.empty() || row.cause.empty() || row.advice.empty())
    throw std::runtime_error(reader.field("backends, cause or advice") + ": is empty");
  return row;
}

bool tells(const std::string& text, const std::string& part) {
  const bool absent = part.starts_with('!');
  return (text.find(part.substr(absent ? 1 : 0)) == std::string::npos) == absent;
}

}  // namespace

std::vector<Advice> read_advice() {
  const auto file = cases_folder() / "advice.json";
  try {
    const auto json = read_json(file);
    std::vector<Advice> table;
    for (const auto& row : JsonReader(json, "table").array("rows"))
      table.push_back(advice_from(JsonReader(row, fmt::format("rows[{}]", table.size()))));
    return table;
  } catch (const std::exception& error) {
    throw RunError(fmt::format("{}: the table of advice cannot be read: {}", file.string(), error.what()));
  }
}

const Advice* advice_on(const Record& record, const std::string& signature, const std::vector<Advice>& table) {
  const std::string text = record.reason + " | " + signature + " | " + record.case_line + " ";
  const auto found = std::ranges::find_if(table, [&](const Advice& row) {
    const bool speaks = std::ranges::find(row.backends, record.backend) != row.backends.end() &&
                        (row.device == "any" || record.device.starts_with(row.device)) &&
                        (row.pass == "any" || row.pass == name_of(record.pass)) && row.status == name_of(record.status);
    return speaks && std::ranges::all_of(row.tells, [&](const std::string& part) { return tells(text, part); });
  });
  return found == table.end() ? nullptr : &*found;
}

}  // namespace attnbench
