#include "reports/run_view.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace attnbench {
namespace {

void add_once(std::vector<std::string>& names, const std::string& name) {
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

void flatten(const nlohmann::json& value, const std::string& path, std::vector<std::pair<std::string, std::string>>& lines) {
  if (!value.is_object()) {
    lines.emplace_back(path, value.is_string() ? value.get<std::string>() : value.dump());
    return;
  }
  for (const auto& [key, child] : value.items()) flatten(child, path.empty() ? key : path + "." + key, lines);
}

}  // namespace

std::vector<std::string> backend_names(const RunData& run) {
  std::vector<std::string> names;
  for (const auto& [device, declared] : run.backends)
    for (const Declaration& backend : declared) add_once(names, backend.name);
  for (const Record& record : run.records) add_once(names, record.backend);
  for (const Comparison& comparison : run.comparisons) {
    for (const Difference& difference : comparison.differences) {
      add_once(names, difference.a);
      add_once(names, difference.b);
    }
  }
  return names;
}

std::vector<std::string> suite_names(const RunData& run) {
  std::vector<std::string> names;
  for (const Record& record : run.records) add_once(names, record.suite);
  return names;
}

std::string dtype_of(const std::string& case_line) {
  try {
    return std::string(name_of(parse_case(case_line).problem.dtype));
  } catch (const CaseError&) {
    return "?";
  }
}

std::vector<const Timing*> timings_of(const Record& record) {
  if (record.status != Status::passed || !record.time) return {};
  std::vector<const Timing*> timings{&*record.time};
  for (const Timing& timing : record.other_regimes) timings.push_back(&timing);
  return timings;
}

bool is_gated(const RunData& run, const Record& record) {
  return std::find(run.gated.begin(), run.gated.end(), record.backend) != run.gated.end();
}

std::string device_title(const RunData& run, const std::string& device) {
  for (const RunHeader& header : run.headers) {
    if (!header.environment.contains("device")) continue;
    const auto measured = header.environment["device"].get<Device>();
    if (device == device_text(measured) && !measured.name.empty()) return fmt::format("{}: {}", device, measured.name);
  }
  return device;
}

std::vector<std::string> not_on_device_lines(const RunData& run) {
  std::vector<std::string> lines;
  for (const auto& [kind, backends] : run.not_on_device)
    if (!backends.empty()) lines.push_back(fmt::format("not on {}: {}", kind, fmt::join(backends, ", ")));
  return lines;
}

std::vector<std::pair<std::string, std::string>> environment_of(const RunHeader& header) {
  nlohmann::json environment = header.environment;
  for (const char* key : {"backends", "canaries", "not_on_device"})
    if (environment.is_object()) environment.erase(key);
  std::vector<std::pair<std::string, std::string>> lines;
  if (!environment.is_null()) flatten(environment, "", lines);
  return lines;
}

}  // namespace attnbench
