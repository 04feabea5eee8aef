#include "harness/run/calibration.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "harness/run/data_files.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/files.hpp"
#include "harness/run/json_reader.hpp"

namespace attnbench {
namespace {

using nlohmann::json;

/// Name in the file and place of each constant.
constexpr std::pair<const char*, double GateConstants::*> kConstants[] = {
    {"false_alarms", &GateConstants::false_alarms},
    {"gain_deviations", &GateConstants::gain_deviations},
    {"gain_floor", &GateConstants::gain_floor},
    {"truncation", &GateConstants::truncation},
    {"ratio_margin", &GateConstants::ratio_margin},
    {"ratio_deviations", &GateConstants::ratio_deviations},
    {"rms_floor", &GateConstants::rms_floor},
    {"z_floor", &GateConstants::z_floor},
    {"lse", &GateConstants::lse},
};

GateConstants constants_from(const JsonReader& in) {
  GateConstants constants;
  for (const auto& [name, place] : kConstants) {
    constants.*place = in.number(name);
    if (!(constants.*place >= 0 && constants.*place < kInfinity))
      throw std::runtime_error(fmt::format("{}: expected a number of 0 or more, got {}", in.field(name), constants.*place));
  }
  return constants;
}

std::pair<CellKey, NullCell> cell_from(const JsonReader& in) {
  CellKey key{in.text("rounds_like"),
              in.boolean("large_scores"),
              in.one_of("dtype", {Dtype::bf16, Dtype::fp16, Dtype::fp32}),
              in.text("tensor"),
              in.text("gate"),
              static_cast<int>(in.integer("decade"))};
  NullCell cell;
  cell.count = in.integer("count");
  cell.cases = in.integer("cases");
  cell.no_power = in.integer("no_power");
  cell.beyond_formula = in.integer("beyond_formula");
  cell.backends = in.texts("backends");
  cell.p50 = in.number("p50");
  cell.p90 = in.number("p90");
  cell.p99 = in.number("p99");
  cell.p999 = in.number("p999");
  cell.max = in.number("max");
  cell.factor = in.number("factor");
  if (!(cell.factor > 0 && cell.factor <= 1))
    throw std::runtime_error(fmt::format("{}: expected a number above 0 and at most 1, got {}", in.field("factor"), cell.factor));
  if (cell.factor < cell.max)
    throw std::runtime_error(
        fmt::format("{}: {} is below the largest that was seen, {}", in.field("factor"), cell.factor, cell.max));
  return {key, cell};
}

json to_json(const CellKey& key, const NullCell& cell) {
  return {{"rounds_like", key.rounds_like},
          {"large_scores", key.large_scores},
          {"dtype", name_of(key.dtype)},
          {"tensor", key.tensor},
          {"gate", key.gate},
          {"decade", key.decade},
          {"count", cell.count},
          {"cases", cell.cases},
          {"no_power", cell.no_power},
          {"beyond_formula", cell.beyond_formula},
          {"backends", cell.backends},
          {"p50", cell.p50},
          {"p90", cell.p90},
          {"p99", cell.p99},
          {"p999", cell.p999},
          {"max", cell.max},
          {"factor", cell.factor}};
}

Calibration calibration_from(const JsonReader& in) {
  Calibration calibration;
  calibration.device = in.text("device");
  calibration.about = in.text("about");
  calibration.made_by = in.value("made_by");
  calibration.constants = constants_from(in.object("constants"));
  calibration.backends = in.texts("backends");
  for (const json& entry : in.array("left_out")) {
    const JsonReader fields(entry, in.field("left_out"));
    calibration.left_out.push_back({fields.text("backend"), fields.text("tensor"), fields.text("why")});
  }
  for (const json& entry : in.array("cells"))
    calibration.cells.insert(cell_from(JsonReader(entry, fmt::format("cells[{}]", calibration.cells.size()))));
  return calibration;
}

}  // namespace

std::string calibrated_as(const Profile& profile, const Problem& problem) {
  const bool rounds_inside = profile.p != Profile::Probabilities::not_rounded || profile.rounds_ds || profile.rounds_scores ||
                             profile.rounds_gqa_partials;
  const std::string name = problem.dtype == Dtype::fp32 || !rounds_inside ? "fp32_inside" : profile.name;
  if (problem.has_score_options() || problem.dropout.p > 0) return name + "_with_options";
  const bool has_one_key = std::holds_alternative<std::monostate>(problem.lens) && problem.lk == 1;
  return has_one_key ? name + "_of_one_key" : name;
}

bool has_large_scores(const Case& c) {
  const double usual = 1 / std::sqrt(static_cast<double>(c.problem.d));
  return c.fill == Fill::shifted_negative || c.fill == Fill::deep_negative ||
         std::abs(c.problem.scale.value_or(usual)) > 2 * usual;
}

std::string calibrated_tensor(const std::string& tensor) {
  return tensor.substr(0, tensor.find("_given_o"));
}

int decade_of(int64_t n) {
  return n <= 100 ? 1 : n <= 1000 ? 2 : n <= 10000 ? 3 : n <= 100000 ? 4 : 5;
}

double Calibration::factor(const CellKey& key) const {
  const auto found = cells.find(key);
  return found == cells.end() ? 1 : found->second.factor;
}

bool Calibration::is_left_out(const std::string& backend, const std::string& tensor) const {
  return std::ranges::any_of(left_out, [&](const LeftOut& entry) {
    return entry.backend == backend && (entry.tensor.empty() || entry.tensor == calibrated_tensor(tensor));
  });
}

std::filesystem::path calibration_file(const std::string& device_kind) {
  return cases_folder() / "calibration" / (device_kind + ".json");
}

Calibration read_calibration(const std::filesystem::path& file, const std::string& device_kind) {
  try {
    const json content = read_json(file);
    Calibration calibration = calibration_from(JsonReader(content, "calibration"));
    if (calibration.device != device_kind)
      throw std::runtime_error(fmt::format("expected the calibration of {}, got that of {}", device_kind, calibration.device));
    return calibration;
  } catch (const std::exception& error) {
    throw InfrastructureError(
        fmt::format("{}: without calibration there are no limits to judge by: {}", file.string(), error.what()));
  }
}

std::string to_text(const Calibration& calibration) {
  json constants = json::object(), left_out = json::array();
  for (const auto& [name, place] : kConstants) constants[name] = calibration.constants.*place;
  for (const LeftOut& entry : calibration.left_out)
    left_out.push_back({{"backend", entry.backend}, {"tensor", entry.tensor}, {"why", entry.why}});
  std::string text = "{\n";
  const auto add = [&](const char* key, const json& value) { text += fmt::format("\"{}\": {},\n", key, to_text(value)); };
  add("device", calibration.device);
  add("about", calibration.about);
  add("made_by", calibration.made_by);
  add("constants", constants);
  add("backends", calibration.backends);
  add("left_out", left_out);
  text += "\"cells\": [";
  const char* separator = "\n";
  for (const auto& [key, cell] : calibration.cells) {
    text += separator + to_text(to_json(key, cell));
    separator = ",\n";
  }
  return text + "\n]}\n";
}

json identity_of(const Calibration& calibration) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char byte : to_text(calibration)) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3u;
  return {{"file", calibration_file(calibration.device).filename().string()}, {"fnv1a64", fmt::format("{:016x}", hash)}};
}

}  // namespace attnbench
