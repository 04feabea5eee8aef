// The worker protocol: JSON lines on two file descriptors that belong to it alone (libraries write to stdout).
//   worker -> coordinator  {"hello":{…}}                                     once
//   coordinator -> worker  {"request":{…}}                                   one case, several backends and passes
//   worker -> coordinator  {"stage":{"request":N,"backend":…,"pass":…,"stage":…}}  before each step: "prepare", "run", "judge",
//                          "run again", "repeat", "audit", "time", "run after timing"
//   worker -> coordinator  {"result":{"request":N,"record":{…}}}             one for each (backend, pass)
//   worker -> coordinator  {"comparison":{"request":N,"comparison":{…}}}     at most one for each pass
//   worker -> coordinator  {"done":{"request":N}}
//   worker -> coordinator  {"error":{"message":…}}                           it could not read the request; ends the worker
// The coordinator closes the request descriptor to end a worker. After a crash the last stage names the guilty
// backend and pass: they become an `error` record, the rest of the request is sent to a new worker.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "harness/run/declaration.hpp"
#include "harness/run/record.hpp"

namespace attnbench {

inline constexpr int kProtocol = 1;

struct Hello {
  int protocol = kProtocol;
  std::string worker;  ///< program name
  Device device;
  std::vector<Declaration> backends;
  nlohmann::json environment;  ///< library versions, threads, CPU, flags
};

struct Request {
  int64_t id = 0;
  std::string case_line;                           ///< identity and metadata
  std::vector<std::pair<std::string, Pass>> runs;  ///< backend and pass, each backend's forward first
  bool check_only = false;
  std::string dump = "";      ///< folder for what was computed; empty: none
  int64_t audit_repeats = 0;  ///< calls of the audit that follows the judging; 0: no audit
};

struct Stage {
  int64_t request = 0;
  std::string backend;
  Pass pass = Pass::forward;
  std::string stage;
};

void to_json(nlohmann::json&, const Hello&);
void from_json(const nlohmann::json&, Hello&);
void to_json(nlohmann::json&, const Request&);
void from_json(const nlohmann::json&, Request&);
void to_json(nlohmann::json&, const Stage&);
void from_json(const nlohmann::json&, Stage&);

}  // namespace attnbench
