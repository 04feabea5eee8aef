#include "harness/run/protocol.hpp"

#include <fmt/format.h>

#include "harness/run/json_reader.hpp"

namespace attnbench {

using nlohmann::json;

void to_json(json& out, const Hello& hello) {
  out = {{"protocol", hello.protocol},
         {"worker", hello.worker},
         {"device", hello.device},
         {"backends", hello.backends},
         {"environment", hello.environment}};
}

void from_json(const json& line, Hello& hello) {
  const JsonReader in(line, "hello");
  if (const int64_t protocol = in.integer("protocol"); protocol != kProtocol)
    throw std::runtime_error(fmt::format("{}: expected {}, got {}", in.field("protocol"), kProtocol, protocol));
  hello.worker = in.text("worker");
  try {
    in.value("device").get_to(hello.device);
    in.array("backends").get_to(hello.backends);
  } catch (const json::exception& error) {
    throw std::runtime_error(fmt::format("hello: device or backends are not as declared: {}", error.what()));
  }
  hello.environment = in.object("environment").json();
}

void to_json(json& out, const Request& request) {
  json runs = json::array();
  for (const auto& [backend, pass] : request.runs) runs.push_back({backend, name_of(pass)});
  out = {{"id", request.id}, {"case", request.case_line}, {"runs", runs}, {"check_only", request.check_only}};
  if (!request.dump.empty()) out["dump"] = request.dump;
  if (request.audit_repeats > 0) out["audit_repeats"] = request.audit_repeats;
}

void from_json(const json& line, Request& request) {
  const JsonReader in(line, "request");
  request.id = in.integer("id");
  request.case_line = in.text("case");
  request.runs.clear();
  for (const json& run : in.array("runs")) {
    const bool pair = run.is_array() && run.size() == 2 && run[0].is_string() && run[1].is_string();
    const bool known = pair && (run[1] == name_of(Pass::forward) || run[1] == name_of(Pass::backward));
    if (!known) throw std::runtime_error(in.field("runs") + ": expected [[backend, \"forward\" or \"backward\"], …]");
    request.runs.emplace_back(run[0], run[1] == name_of(Pass::forward) ? Pass::forward : Pass::backward);
  }
  request.check_only = in.boolean("check_only");
  request.dump = line.contains("dump") ? in.text("dump") : "";
  request.audit_repeats = line.contains("audit_repeats") ? in.integer("audit_repeats") : 0;
}

void to_json(json& out, const Stage& stage) {
  out = {{"request", stage.request}, {"backend", stage.backend}, {"pass", name_of(stage.pass)}, {"stage", stage.stage}};
}

void from_json(const json& line, Stage& stage) {
  const JsonReader in(line, "stage");
  stage = {in.integer("request"), in.text("backend"), in.one_of("pass", {Pass::forward, Pass::backward}), in.text("stage")};
}

}  // namespace attnbench
