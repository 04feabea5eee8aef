#include "harness/run/tensor_failure.hpp"

#include <stdexcept>

#include <fmt/format.h>

#include "harness/run/json_reader.hpp"

namespace attnbench {
namespace {

using nlohmann::json;

json to_json_map(const HeatMap& map) {
  json cells = json::array();
  for (const std::vector<double>& row : map.cells) {
    json line = json::array();
    for (const double cell : row) line.push_back(number_to_json(cell));
    cells.push_back(std::move(line));
  }
  return {{"measure", map.measure},
          {"sequences_per_row", map.sequences_per_row},
          {"heads_per_row", map.heads_per_row},
          {"tokens_per_column", map.tokens_per_column},
          {"cells", cells}};
}

HeatMap map_from(const JsonReader& in) {
  HeatMap map{
      in.text("measure"), in.integer("sequences_per_row"), in.integer("heads_per_row"), in.integer("tokens_per_column"), {}};
  if (map.sequences_per_row < 1 || map.heads_per_row < 1 || map.tokens_per_column < 1)
    throw std::runtime_error(in.field("tokens_per_column") + ": a cell holds at least one sequence, head and token");
  for (const json& row : in.array("cells")) {
    if (!row.is_array()) throw std::runtime_error(in.field("cells") + ": expected arrays of numbers");
    std::vector<double>& line = map.cells.emplace_back();
    for (const json& cell : row) line.push_back(number_from_json(cell, in.field("cells")));
  }
  return map;
}

json to_json_pattern(const BadPattern& pattern) {
  return {{"text", pattern.text},         {"sequences", pattern.sequences}, {"tokens", pattern.tokens},
          {"heads", pattern.heads},       {"channels", pattern.channels},   {"explained", pattern.explained},
          {"elements", pattern.elements}, {"rows_hit", pattern.rows_hit},   {"rows", pattern.rows}};
}

BadPattern pattern_from(const JsonReader& in) {
  return {in.text("sequences"),    in.text("tokens"),      in.text("heads"),       in.text("channels"), in.text("text"),
          in.integer("explained"), in.integer("elements"), in.integer("rows_hit"), in.integer("rows")};
}

}  // namespace

std::string element_place(const std::string& tensor, const Element& e, const char* separator) {
  const std::string name = tensor.substr(0, tensor.find("_instead"));
  const bool is_adapter = name.starts_with("dlora");
  if (!is_adapter && !name.starts_with("dw") && !name.ends_with("norm"))
    return fmt::format("sequence {1}{0}head {2}{0}token {3}{0}channel {4}", separator, e[0], e[1], e[2], e[3]);
  const bool is_transposed = is_adapter && name.ends_with('a');  // its columns are judged as rows
  return fmt::format("row {1}{0}column {2}", separator, e[is_transposed ? 3 : 2], e[is_transposed ? 2 : 3]);
}

json to_json_failure(const TensorFailure& f) {
  return {{"ulp_p50", number_to_json(f.ulp_p50)},
          {"ulp_p99", number_to_json(f.ulp_p99)},
          {"ulp_p999", number_to_json(f.ulp_p999)},
          {"ulp_max", number_to_json(f.ulp_max)},
          {"rms_z", number_to_json(f.rms_z)},
          {"rms_ratio", number_to_json(f.rms_ratio)},
          {"gain", number_to_json(f.gain)},
          {"first_got", number_to_json(f.first_got)},
          {"first_expected", number_to_json(f.first_expected)},
          {"first_sigma", number_to_json(f.first_sigma)},
          {"worst_sigma", number_to_json(f.worst_sigma)},
          {"zeros", f.zeros},
          {"nans", f.nans},
          {"infinities", f.infinities},
          {"pattern", to_json_pattern(f.pattern)},
          {"map", to_json_map(f.map)}};
}

TensorFailure failure_from(const json& object, const std::string& path) {
  const JsonReader in(object, path);
  TensorFailure f;
  f.ulp_p50 = in.number("ulp_p50");
  f.ulp_p99 = in.number("ulp_p99");
  f.ulp_p999 = in.number("ulp_p999");
  f.ulp_max = in.number("ulp_max");
  f.rms_z = in.number("rms_z");
  f.rms_ratio = in.number("rms_ratio");
  f.gain = in.number("gain");
  f.first_got = in.number("first_got");
  f.first_expected = in.number("first_expected");
  f.first_sigma = in.number("first_sigma");
  f.worst_sigma = in.number("worst_sigma");
  f.zeros = in.integer("zeros");
  f.nans = in.integer("nans");
  f.infinities = in.integer("infinities");
  f.pattern = pattern_from(in.object("pattern"));
  f.map = map_from(in.object("map"));
  return f;
}

}  // namespace attnbench
