#include "harness/run/record.hpp"

#include <fmt/format.h>

#include "harness/run/json_reader.hpp"

namespace attnbench {
namespace {

using nlohmann::json;

constexpr auto kStatuses = {Status::passed,      Status::failed,  Status::mistrusted,
                            Status::unsupported, Status::skipped, Status::error};

json to_json_curves(const Curves& curves) {
  json object = json::object();
  for (const auto& [name, numbers] : curves) {
    json& array = object[name] = json::array();
    for (const double number : numbers) array.push_back(number_to_json(number));
  }
  return object;
}

Curves curves_from(const JsonReader& in) {
  Curves curves;
  for (const auto& [name, array] : in.json().items()) {
    std::vector<double>& numbers = curves[name];
    for (const json& number : in.array(name.c_str())) numbers.push_back(number_from_json(number, in.field(name)));
  }
  return curves;
}

json text_or_null(const std::string& text) {
  return text.empty() ? json(nullptr) : json(text);
}
template <class T>
json or_null(const std::optional<T>& value) {
  return value ? json(*value) : json(nullptr);
}

json to_json_gate(const Gate& gate) {
  return {{"value", number_to_json(gate.value)},
          {"limit", number_to_json(gate.limit)},
          {"n", gate.n},
          {"verdict", name_of(gate.verdict)},
          {"formula", number_to_json(gate.formula)}};
}

Gate gate_from(const JsonReader& in) {
  const double limit = in.number("limit");
  return {in.number("value"), limit, in.integer("n"),
          in.one_of("verdict", {Gate::Verdict::pass, Gate::Verdict::fail, Gate::Verdict::no_power}),
          in.has("formula") ? in.number("formula") : limit};  // before there was calibration the formula was the limit
}

std::optional<Element> element_from(const JsonReader& in, const char* key) {
  if (in.value(key).is_null()) return std::nullopt;
  const json& array = in.array(key);
  Element element{};
  if (array.size() != element.size())
    throw std::runtime_error(fmt::format("{}: expected 4 numbers, got {}", in.field(key), array.size()));
  for (size_t i = 0; i < element.size(); ++i) element[i] = integer_from_json(array[i], in.field(key));
  return element;
}

json to_json_errors(const TensorErrors& errors) {
  json gates = json::object(), rules = json::object();
  for (const auto& [name, gate] : errors.gates) gates[name] = to_json_gate(gate);
  for (const auto& [name, rule] : errors.field_rules)
    rules[name] = {{"error", number_to_json(rule.error)}, {"limit", number_to_json(rule.limit)}, {"passed", rule.passed}};
  const auto compared = [&](const json& number) { return errors.by_gates_alone ? json(nullptr) : number; };
  json line = {{"max_abs", compared(number_to_json(errors.max_abs))},
               {"rel_l2", compared(number_to_json(errors.rel_l2))},
               {"cosine", compared(number_to_json(errors.cosine))},
               {"max_z", number_to_json(errors.max_z)},
               {"elements", errors.elements},
               {"bad", compared(errors.bad)},
               {"gates", gates},
               {"field_rules", rules},
               {"first_bad", or_null(errors.first_bad)},
               {"worst", or_null(errors.worst)},
               {"worst_got", compared(number_to_json(errors.worst_got))},
               {"worst_expected", compared(number_to_json(errors.worst_expected))}};
  if (errors.failure) line["failure"] = to_json_failure(*errors.failure);
  return line;
}

TensorErrors errors_from(const JsonReader& in) {
  TensorErrors errors;
  errors.max_z = in.number("max_z");
  errors.elements = in.integer("elements");
  errors.by_gates_alone = in.value("max_abs").is_null();
  if (!errors.by_gates_alone) {
    errors.max_abs = in.number("max_abs");
    errors.rel_l2 = in.number("rel_l2");
    errors.cosine = in.number("cosine");
    errors.bad = in.integer("bad");
    errors.worst_got = in.number("worst_got");
    errors.worst_expected = in.number("worst_expected");
  }
  const JsonReader gates = in.object("gates"), rules = in.object("field_rules");
  for (const auto& [name, gate] : gates.json().items()) errors.gates[name] = gate_from(JsonReader(gate, gates.field(name)));
  for (const auto& [name, rule] : rules.json().items()) {
    const JsonReader fields(rule, rules.field(name));
    errors.field_rules[name] = {fields.number("error"), fields.number("limit"), fields.boolean("passed")};
  }
  errors.first_bad = element_from(in, "first_bad");
  errors.worst = element_from(in, "worst");
  if (in.has("failure")) errors.failure = failure_from(in.value("failure"), in.field("failure"));
  return errors;
}

json to_json_rounds(const std::vector<std::vector<double>>& rounds) {
  json array = json::array();
  for (const auto& round : rounds) {
    json samples = json::array();
    for (double sample : round) samples.push_back(number_to_json(sample));
    array.push_back(std::move(samples));
  }
  return array;
}

std::vector<std::vector<double>> rounds_from(const JsonReader& in, const char* key) {
  std::vector<std::vector<double>> rounds;
  for (const json& round : in.array(key)) {
    if (!round.is_array()) throw std::runtime_error(in.field(key) + ": expected arrays of numbers");
    std::vector<double>& samples = rounds.emplace_back();
    for (const json& sample : round) samples.push_back(number_from_json(sample, in.field(key)));
  }
  return rounds;
}

json to_json_gpu(const GpuConditions& gpu) {
  return {{"sm_mhz", or_null(gpu.sm_mhz)},
          {"sm_mhz_rounds", to_json_rounds(gpu.sm_mhz_rounds)},
          {"power_w", or_null(gpu.power_w)},
          {"temperature_c", or_null(gpu.temperature_c)},
          {"throttle", gpu.throttle},
          {"samples_without_hold", gpu.samples_without_hold},
          {"rounds_retaken", gpu.rounds_retaken}};
}

GpuConditions gpu_from(const JsonReader& in) {
  const auto optional_number = [&](const char* key) {
    return in.value(key).is_null() ? std::nullopt : std::optional(in.number(key));
  };
  GpuConditions gpu;
  gpu.sm_mhz = optional_number("sm_mhz");
  gpu.sm_mhz_rounds = rounds_from(in, "sm_mhz_rounds");
  gpu.power_w = optional_number("power_w");
  gpu.temperature_c = optional_number("temperature_c");
  for (const json& reason : in.array("throttle")) {
    if (!reason.is_string()) throw std::runtime_error(in.field("throttle") + ": expected an array of texts");
    gpu.throttle.push_back(reason);
  }
  gpu.samples_without_hold = in.integer("samples_without_hold");
  gpu.rounds_retaken = in.integer("rounds_retaken");
  return gpu;
}

json to_json_window(const WindowTime& window) {
  json object = {{"median_us", number_to_json(window.median_us)},
                 {"ci95_us", {number_to_json(window.ci95_us[0]), number_to_json(window.ci95_us[1])}},
                 {"p5_us", number_to_json(window.p5_us)},
                 {"p95_us", number_to_json(window.p95_us)},
                 {"n", window.n},
                 {"converged", window.converged},
                 {"rounds", to_json_rounds(window.rounds)}};
  if (window.calls_per_sample > 0) object["calls_per_sample"] = window.calls_per_sample;
  if (window.gpu) object["gpu"] = to_json_gpu(*window.gpu);
  return object;
}

WindowTime window_from(const JsonReader& in) {
  WindowTime window;
  window.median_us = in.number("median_us");
  window.p5_us = in.number("p5_us");
  window.p95_us = in.number("p95_us");
  const json& interval = in.array("ci95_us");
  if (interval.size() != 2)
    throw std::runtime_error(fmt::format("{}: expected 2 numbers, got {}", in.field("ci95_us"), interval.size()));
  for (size_t i = 0; i < 2; ++i) window.ci95_us[i] = number_from_json(interval[i], in.field("ci95_us"));
  window.n = in.integer("n");
  window.converged = in.boolean("converged");
  window.rounds = rounds_from(in, "rounds");
  if (in.has("calls_per_sample")) window.calls_per_sample = in.integer("calls_per_sample");
  if (in.has("gpu")) window.gpu = gpu_from(in.object("gpu"));
  return window;
}

json to_json_timing(const Timing& timing) {
  json windows = json::object();
  for (const auto& [name, window] : timing.windows) windows[name] = to_json_window(window);
  return {{"regime", timing.regime},
          {"windows", windows},
          {"tflops", number_to_json(timing.tflops)},
          {"tflops_paper", number_to_json(timing.tflops_paper)},
          {"order_seed", timing.order_seed}};
}

Timing timing_from(const JsonReader& in) {
  Timing timing;
  timing.regime = in.text("regime");
  const JsonReader windows = in.object("windows");
  for (const auto& [name, window] : windows.json().items())
    timing.windows[name] = window_from(JsonReader(window, windows.field(name)));
  timing.tflops = in.number("tflops");
  timing.tflops_paper = in.number("tflops_paper");
  timing.order_seed = in.unsigned_integer("order_seed");
  return timing;
}

json to_json_safety(const Safety& safety) {
  json line = {{"sm_below_8", safety.sm_below_8},
               {"backward_d_above_64_sm_below_8", safety.backward_d_above_64_sm_below_8},
               {"verdict", safety.verdict},
               {"reason", safety.reason},
               {"source", safety.source}};
  if (safety.assumed_sm) line["assumed_sm"] = *safety.assumed_sm;
  return line;
}

Safety safety_from(const JsonReader& in) {
  const bool is_old = in.has("seed_rule") && !in.has("sm_below_8");  // records until 2026-11-21 have other names for both
  Safety safety{in.boolean(is_old ? "seed_rule" : "sm_below_8"),
                in.boolean(is_old ? "mission_rule" : "backward_d_above_64_sm_below_8"),
                in.text("verdict"),
                in.text("reason"),
                in.text("source"),
                {}};
  if (in.has("assumed_sm")) safety.assumed_sm = static_cast<int>(in.integer("assumed_sm"));
  if (safety.verdict != "ok" && safety.verdict != "refused" && safety.verdict != "silently_unsafe")
    throw std::runtime_error(
        fmt::format("{}: expected ok, refused or silently_unsafe, got \"{}\"", in.field("verdict"), safety.verdict));
  return safety;
}

JsonReader open_line(const json& line, const char* kind) {
  JsonReader in(line, kind);
  if (const int64_t schema = in.integer("schema"); schema != kSchema)
    throw std::runtime_error(fmt::format("{}: expected {}, got {}", in.field("schema"), kSchema, schema));
  if (in.text("record") != kind)
    throw std::runtime_error(fmt::format("{}: expected \"{}\", got \"{}\"", in.field("record"), kind, in.text("record")));
  return in;
}

/// The fields of a result that say which run of which case it is.
void read_identity(const JsonReader& in, Record& record) {
  record.run = in.text("run");
  record.suite = in.text("suite");
  if (in.has("case_suite")) record.case_suite = in.text("case_suite");
  record.safety = safety_from(in.object("safety"));
  record.case_line = in.text("case");
  record.name = in.optional_text("name");
  record.expect = in.one_of("expect", {Expect::equal, Expect::must_differ, Expect::must_throw});
  if (in.has("terms")) record.terms = in.text("terms");
  record.backend = in.text("backend");
  record.version = in.text("version");
  record.device = in.text("device");
  record.sm = in.optional_integer("sm");
  record.pass = in.one_of("pass", {Pass::forward, Pass::backward});
  record.repro = in.text("repro");
}

/// Why a result cannot have passed, whatever it says; empty: it can.
std::string why_not_passed(const Record& record) {
  if (record.expect == Expect::must_throw) return "";  // nothing was computed
  if (record.errors.empty()) return "no tensor of it was judged";
  if (record.expect == Expect::must_differ) return "";
  for (const auto& [tensor, errors] : record.errors)
    for (const auto& [name, gate] : errors.gates)
      if (gate.verdict == Gate::Verdict::fail) return fmt::format("gate {} of {} fails", name, tensor);
  return "";
}

json to_json_spending(const Spending& spent) {
  json object = json::object();
  for (const auto& [name, item] : spent.items) object[name] = {{"seconds", number_to_json(item.seconds)}, {"times", item.times}};
  if (spent.fastest_call_s > 0) object["fastest_call_s"] = number_to_json(spent.fastest_call_s);
  return object;
}

Spending spending_from(const JsonReader& in) {
  Spending spent;
  for (const auto& [name, value] : in.json().items()) {
    if (name == "fastest_call_s") continue;
    const JsonReader item(value, in.field(name));
    spent.items[name] = {item.number("seconds"), item.integer("times")};
  }
  if (in.has("fastest_call_s")) spent.fastest_call_s = in.number("fastest_call_s");
  return spent;
}

}  // namespace

std::string_view name_of(Status status) {
  switch (status) {
    case Status::passed:
      return "passed";
    case Status::failed:
      return "failed";
    case Status::mistrusted:
      return "mistrusted";
    case Status::unsupported:
      return "unsupported";
    case Status::skipped:
      return "skipped";
    case Status::error:
      return "error";
  }
  throw std::logic_error(fmt::format("status {} has no name", int(status)));
}

std::string_view name_of(Gate::Verdict verdict) {
  switch (verdict) {
    case Gate::Verdict::pass:
      return "pass";
    case Gate::Verdict::fail:
      return "fail";
    case Gate::Verdict::no_power:
      return "no_power";
  }
  throw std::logic_error(fmt::format("gate verdict {} has no name", int(verdict)));
}

json to_line(const Record& record) {
  json errors = json::object();
  for (const auto& [tensor, tensor_errors] : record.errors) errors[tensor] = to_json_errors(tensor_errors);
  json line = {{"schema", kSchema},
               {"record", "result"},
               {"run", record.run},
               {"suite", record.suite},
               {"safety", to_json_safety(record.safety)},
               {"case", record.case_line},
               {"name", text_or_null(record.name)},
               {"expect", name_of(record.expect)},
               {"backend", record.backend},
               {"version", record.version},
               {"device", record.device},
               {"sm", or_null(record.sm)},
               {"pass", name_of(record.pass)},
               {"status", name_of(record.status)},
               {"reason", record.reason},
               {"oracle", text_or_null(record.oracle)},
               {"errors", errors},
               {"memory", nullptr},
               {"kernels", text_or_null(record.kernels)},
               {"seconds", number_to_json(record.seconds)},
               {"repro", record.repro}};
  if (!record.case_suite.empty()) line["case_suite"] = record.case_suite;
  if (!record.terms.empty()) line["terms"] = record.terms;
  if (!record.attention.empty()) line["attention"] = record.attention;
  if (!record.choice.empty()) line["choice"] = record.choice;
  if (!record.spent.items.empty()) line["spent"] = to_json_spending(record.spent);
  if (record.time) line["time"] = to_json_timing(*record.time);
  for (const Timing& timing : record.other_regimes) line["other_regimes"].push_back(to_json_timing(timing));
  for (const Invariance& invariance : record.invariance) line["invariance"].push_back(to_json_invariance(invariance));
  if (record.memory) {
    line["memory"] = {{"peak_bytes", record.memory->peak_bytes},
                      {"workspace_bytes", record.memory->workspace_bytes},
                      {"predicted_bytes", record.memory->predicted_bytes}};
  }
  if (record.training) {
    line["training"] = {{"measured", to_json_curves(record.training->measured)},
                        {"low", to_json_curves(record.training->low)},
                        {"high", to_json_curves(record.training->high)},
                        {"step_us", number_to_json(record.training->step_us)},
                        {"peak_bytes", record.training->peak_bytes}};
  }
  return line;
}

Record record_from(const json& line) {
  const JsonReader in = open_line(line, "result");
  Record record;
  read_identity(in, record);
  record.status = in.one_of("status", kStatuses);
  record.reason = in.text("reason");
  record.oracle = in.optional_text("oracle");
  const JsonReader errors = in.object("errors");
  for (const auto& [tensor, value] : errors.json().items())
    record.errors[tensor] = errors_from(JsonReader(value, errors.field(tensor)));
  if (in.has("time")) record.time = timing_from(in.object("time"));
  if (in.has("other_regimes")) {
    for (const json& timing : in.array("other_regimes"))
      record.other_regimes.push_back(timing_from(JsonReader(timing, in.field("other_regimes"))));
  }
  if (const std::string why = why_not_passed(record); record.status == Status::passed && !why.empty())
    throw std::runtime_error(fmt::format("{}: it says passed, and {}", in.field("status"), why));
  if (record.time && record.status != Status::passed)
    throw std::runtime_error(fmt::format("{}: a result that is {} has no time", in.field("time"), name_of(record.status)));
  if (!record.time && !record.other_regimes.empty())
    throw std::runtime_error(fmt::format("{}: a result without a time has no other regimes", in.field("other_regimes")));
  if (in.has("memory")) {
    const JsonReader memory = in.object("memory");
    record.memory = {memory.integer("peak_bytes"), memory.integer("workspace_bytes"), memory.integer("predicted_bytes")};
  }
  if (in.has("invariance"))
    for (const json& value : in.array("invariance")) record.invariance.push_back(invariance_from(value, in.field("invariance")));
  if (in.has("training")) {
    const JsonReader training = in.object("training");
    record.training = {curves_from(training.object("measured")), curves_from(training.object("low")),
                       curves_from(training.object("high")), training.number("step_us"), training.integer("peak_bytes")};
  }
  record.kernels = in.optional_text("kernels");
  if (in.has("attention")) record.attention = in.text("attention");
  if (in.has("choice")) record.choice = in.text("choice");
  record.seconds = in.number("seconds");
  if (in.has("spent")) record.spent = spending_from(in.object("spent"));
  return record;
}

json to_line(const Comparison& comparison) {
  json differences = json::array();
  for (const Difference& difference : comparison.differences) {
    differences.push_back({{"a", difference.a},
                           {"b", difference.b},
                           {"tensor", difference.tensor},
                           {"max_abs", number_to_json(difference.max_abs)},
                           {"rel_l2", number_to_json(difference.rel_l2)}});
  }
  return {{"schema", kSchema},         {"record", "comparison"},       {"run", comparison.run},
          {"suite", comparison.suite}, {"case", comparison.case_line}, {"pass", name_of(comparison.pass)},
          {"differences", differences}};
}

Comparison comparison_from(const json& line) {
  const JsonReader in = open_line(line, "comparison");
  Comparison comparison{
      in.text("run"), in.text("suite"), in.text("case"), in.one_of("pass", {Pass::forward, Pass::backward}), {}};
  for (const json& value : in.array("differences")) {
    const JsonReader difference(value, in.field("differences"));
    comparison.differences.push_back({difference.text("a"), difference.text("b"), difference.text("tensor"),
                                      difference.number("max_abs"), difference.number("rel_l2")});
  }
  return comparison;
}

json to_line(const RunHeader& header) {
  return {{"schema", kSchema},   {"record", "run"},           {"run", header.run},
          {"argv", header.argv}, {"started", header.started}, {"environment", header.environment}};
}

RunHeader run_header_from(const json& line) {
  const JsonReader in = open_line(line, "run");
  RunHeader header{in.text("run"), {}, in.text("started"), in.object("environment").json()};
  for (const json& argument : in.array("argv")) {
    if (!argument.is_string()) throw std::runtime_error(in.field("argv") + ": expected an array of texts");
    header.argv.push_back(argument);
  }
  return header;
}

}  // namespace attnbench
