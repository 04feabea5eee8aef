#include "reports/csv.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "reports/run_view.hpp"

namespace attnbench {
namespace {

using Row = std::map<std::string, std::string>;

/// Shortest text that reads back as the same double.
std::string number(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  return fmt::format("{}", value);
}

std::string truth(bool value) {
  return value ? "true" : "false";
}

/// Columns that every record fills, in the order of the file.
const std::vector<std::string>& record_columns() {
  static const std::vector<std::string> names{"run",
                                              "suite",
                                              "case",
                                              "name",
                                              "expect",
                                              "terms",
                                              "dtype",
                                              "backend",
                                              "version",
                                              "device",
                                              "sm",
                                              "pass",
                                              "status",
                                              "reason",
                                              "oracle",
                                              "kernels",
                                              "attention",
                                              "choice",
                                              "safety_sm_below_8",
                                              "safety_backward_d_above_64_sm_below_8",
                                              "safety_verdict",
                                              "safety_reason",
                                              "safety_source",
                                              "peak_bytes",
                                              "workspace_bytes",
                                              "predicted_bytes",
                                              "step_us",
                                              "step_peak_bytes",
                                              "seconds",
                                              "repro"};
  return names;
}

const std::vector<std::string>& tensor_columns() {
  static const std::vector<std::string> names{"max_abs",     "rel_l2",        "cosine",         "max_z",
                                              "elements",    "bad",           "worst_sequence", "worst_head",
                                              "worst_token", "worst_channel", "worst_got",      "worst_expected"};
  return names;
}

const std::vector<std::string>& window_columns() {
  static const std::vector<std::string> names{
      "regime",        "median_us", "ci95_low_us", "ci95_high_us",     "p5_us",    "p95_us",
      "samples",       "rounds",    "converged",   "calls_per_sample", "tflops",   "tflops_paper",
      "order_seed",    "sm_mhz",    "power_w",     "temperature_c",    "throttle", "samples_without_hold",
      "rounds_retaken"};
  return names;
}

Row record_row(const Record& r) {
  Row row{{"run", r.run},
          {"suite", r.suite},
          {"case", r.case_line},
          {"name", r.name},
          {"expect", std::string(name_of(r.expect))},
          {"terms", r.terms},
          {"dtype", dtype_of(r.case_line)},
          {"backend", r.backend},
          {"version", r.version},
          {"device", r.device},
          {"sm", r.sm ? std::to_string(*r.sm) : ""},
          {"pass", std::string(name_of(r.pass))},
          {"status", std::string(name_of(r.status))},
          {"reason", r.reason},
          {"oracle", r.oracle},
          {"kernels", r.kernels},
          {"attention", r.attention},
          {"choice", r.choice},
          {"safety_sm_below_8", truth(r.safety.sm_below_8)},
          {"safety_backward_d_above_64_sm_below_8", truth(r.safety.backward_d_above_64_sm_below_8)},
          {"safety_verdict", r.safety.verdict},
          {"safety_reason", r.safety.reason},
          {"safety_source", r.safety.source},
          {"seconds", number(r.seconds)},
          {"repro", r.repro}};
  if (r.memory) {
    row["peak_bytes"] = std::to_string(r.memory->peak_bytes);
    row["workspace_bytes"] = std::to_string(r.memory->workspace_bytes);
    row["predicted_bytes"] = std::to_string(r.memory->predicted_bytes);
  }
  if (r.training) {
    row["step_us"] = number(r.training->step_us);
    row["step_peak_bytes"] = std::to_string(r.training->peak_bytes);
  }
  return row;
}

void add_tensor(Row& row, const std::string& tensor, const TensorErrors& e) {
  row.merge(Row{{"kind", "tensor"}, {"item", tensor}, {"max_z", number(e.max_z)}, {"elements", std::to_string(e.elements)}});
  if (!e.by_gates_alone)
    row.merge(Row{{"max_abs", number(e.max_abs)},
                  {"rel_l2", number(e.rel_l2)},
                  {"cosine", number(e.cosine)},
                  {"bad", std::to_string(e.bad)}});
  if (e.worst) {
    static constexpr std::array kPlaces{"worst_sequence", "worst_head", "worst_token", "worst_channel"};
    for (std::size_t i = 0; i < kPlaces.size(); ++i) row[kPlaces[i]] = std::to_string((*e.worst)[i]);
    row["worst_got"] = number(e.worst_got);
    row["worst_expected"] = number(e.worst_expected);
  }
  for (const auto& [name, gate] : e.gates) {
    row["gate." + name + ".value"] = number(gate.value);
    row["gate." + name + ".limit"] = number(gate.limit);
    row["gate." + name + ".verdict"] = name_of(gate.verdict);
  }
}

void add_gpu(Row& row, const GpuConditions& gpu) {
  const auto optional = [](const std::optional<double>& value) { return value ? number(*value) : ""; };
  row.merge(Row{{"sm_mhz", optional(gpu.sm_mhz)},
                {"power_w", optional(gpu.power_w)},
                {"temperature_c", optional(gpu.temperature_c)},
                {"throttle", fmt::format("{}", fmt::join(gpu.throttle, "+"))},
                {"samples_without_hold", std::to_string(gpu.samples_without_hold)},
                {"rounds_retaken", std::to_string(gpu.rounds_retaken)}});
}

void add_window(Row& row, const std::string& window, const WindowTime& w, const Timing& timing) {
  row.merge(Row{{"kind", "window"},
                {"item", window},
                {"regime", timing.regime},
                {"median_us", number(w.median_us)},
                {"ci95_low_us", number(w.ci95_us[0])},
                {"ci95_high_us", number(w.ci95_us[1])},
                {"p5_us", number(w.p5_us)},
                {"p95_us", number(w.p95_us)},
                {"samples", std::to_string(w.n)},
                {"rounds", std::to_string(w.rounds.size())},
                {"converged", truth(w.converged)},
                {"order_seed", std::to_string(timing.order_seed)}});
  if (w.calls_per_sample > 0) row["calls_per_sample"] = std::to_string(w.calls_per_sample);
  if (w.gpu) add_gpu(row, *w.gpu);
  if (window == main_window(timing)) {
    row["tflops"] = number(timing.tflops);
    row["tflops_paper"] = number(timing.tflops_paper);
  }
}

std::vector<Row> rows_of(const Record& record) {
  std::vector<Row> rows;
  for (const auto& [tensor, errors] : record.errors) add_tensor(rows.emplace_back(record_row(record)), tensor, errors);
  for (const Timing* timing : timings_of(record)) {
    for (const auto& [window, time] : timing->windows) add_window(rows.emplace_back(record_row(record)), window, time, *timing);
  }
  if (rows.empty()) rows.emplace_back(record_row(record))["kind"] = "record";
  return rows;
}

std::vector<std::string> header_of(const RunData& run) {
  std::set<std::string> gates;
  for (const Record& record : run.records) {
    for (const auto& [tensor, errors] : record.errors) {
      for (const auto& [name, gate] : errors.gates) gates.insert(name);
    }
  }
  std::vector<std::string> header = record_columns();
  header.insert(header.end(), {"kind", "item"});
  header.insert(header.end(), tensor_columns().begin(), tensor_columns().end());
  for (const std::string& gate : gates) {
    for (const char* part : {".value", ".limit", ".verdict"}) header.push_back("gate." + gate + part);
  }
  header.insert(header.end(), window_columns().begin(), window_columns().end());
  return header;
}

std::string line_of(const std::vector<std::string>& fields) {
  std::string line;
  for (std::size_t i = 0; i < fields.size(); ++i) line.append(i == 0 ? "" : ",").append(csv_field(fields[i]));
  return line + "\n";
}

}  // namespace

std::string csv_field(std::string_view text) {
  if (text.find_first_of(",\"\n\r") == std::string_view::npos) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

std::string results_csv(const RunData& run) {
  const std::vector<std::string> header = header_of(run);
  std::string text = line_of(header);
  for (const Record& record : run.records) {
    for (const Row& row : rows_of(record)) {
      std::vector<std::string> fields;
      for (const std::string& name : header) {
        const auto found = row.find(name);
        fields.push_back(found == row.end() ? "" : found->second);
      }
      text += line_of(fields);
    }
  }
  return text;
}

}  // namespace attnbench
