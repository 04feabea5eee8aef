#include "reports/advice.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "harness/run/data_files.hpp"
#include "harness/run/files.hpp"
#include "harness/run/json_reader.hpp"
#include "harness/run/run_data.hpp"

namespace attnbench {
namespace {

std::vector<std::string> texts_of(const JsonReader& reader, const char* key) {
  std::vector<std::string> texts;
  for (const auto& text : reader.array(key)) texts.push_back(text.get<std::string>());
  return texts;
}

bool is_one_of(const std::string& text, std::initializer_list<const char*> known) {
  return std::ranges::find(known, text) != known.end();
}

Advice advice_from(const JsonReader& reader) {
  Advice row{.backends = texts_of(reader, "backends"),
             .device = reader.text("device"),
             .pass = reader.text("pass"),
             .status = reader.text("status"),
             .tells = texts_of(reader, "tells"),
             .cause = reader.text("cause"),
             .advice = reader.text("advice"),
             .source = reader.text("source")};
  const bool known = is_one_of(row.device, {"any", "cpu", "cuda"}) && is_one_of(row.pass, {"any", "forward", "backward"}) &&
                     is_one_of(row.status, {"failed", "error", "mistrusted"});
  if (!known) throw std::runtime_error(reader.field("device, pass or status") + ": not one of the values that the file names");
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
