#include "harness/run/coordinator.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "harness/run/case_keys.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/exit_code.hpp"
#include "harness/run/json_reader.hpp"
#include "harness/run/run_data.hpp"
#include "harness/run/safety.hpp"

namespace attnbench {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

constexpr int kMostFailedStarts = 3;
constexpr int kMostFruitlessAttempts = 2;                     // of one case
constexpr int kMostFruitlessCases = 3;                        // in a row
constexpr auto kShortestGreeting = std::chrono::seconds(60);  // a cold disk needs its time for LibTorch
constexpr auto kFarewell = std::chrono::seconds(2);

std::uintmax_t size_of(const std::filesystem::path& file) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(file, error);
  return error ? 0 : size;
}

std::chrono::milliseconds as_milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

/// A layer of a case that says where it believes to run is asked about there.
std::optional<int> assumed_sm_of(const PlannedCase& planned, const RunFields& fields) {
  const std::optional<LlamaLayer>& layer = planned.c.llama;
  return layer && layer->assume.sm ? layer->assume.sm : fields.assume_sm;
}

/// What a layer calls, else the layer that it left the case to (with whose name its choice begins), else the backend itself.
std::string who_computes_attention(const Record& record) {
  if (!record.attention.empty()) return record.attention;
  return record.choice.empty() ? record.backend : record.choice.substr(0, record.choice.find(':'));
}

/// `declaration`: of what computes the attention; with the flash-attn that the case has its layer believe to call, if it calls
/// any.
Safety safety_of(const PlannedCase& planned, const Record& record, const Declaration* declaration, const RunFields& fields) {
  const std::optional<int> assumed = assumed_sm_of(planned, fields);
  SafetyQuery query = safety_query(planned.c.problem, record.pass, assumed ? assumed : record.sm);
  if (declaration) {
    query.implementation = declaration->implementation;
    query.version = declaration->version;
  }
  if (planned.c.llama && !planned.c.llama->assume.flash_attn.empty() && !record.attention.empty()) {
    query.implementation = "flash_attn";
    query.version = planned.c.llama->assume.flash_attn;
  }
  Safety found = safety(query);
  found.assumed_sm = assumed;
  return found;
}

/// The sentence with which a worker refused its options: the last that it said, without its name, which no user typed.
std::string refusal_in(const std::string& last_line) {
  if (last_line.empty()) return "the worker refused its options";
  const std::string name = "attnbench-worker: ";
  return last_line.starts_with(name) ? last_line.substr(name.size()) : last_line;
}

/// What the layers of a case are to call, where that is not the usual.
std::string attention_words(const PlannedCase& planned, const RunFields& fields) {
  if (!planned.c.llama || fields.attention == kUsualAttention) return "";
  std::string words = " --attention " + fields.attention;
  if (fields.attention == kAutoAttention && fields.assume_sm)
    words += fmt::format(" --assume-sm {}.{}", *fields.assume_sm / 10, *fields.assume_sm % 10);
  return words;
}

/// Between double quotes, as a shell reads it back.
std::string double_quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text)
    quoted += (std::string_view("\"\\$`").find(c) == std::string_view::npos ? "" : "\\") + std::string(1, c);
  return quoted + '"';
}

/// With the terms of the verdict: what must differ, or throw, would be red without.
std::string repro_line(const PlannedCase& planned, const Record& record, const RunFields& fields) {
  const bool audits = fields.audit_repeats > 0;
  const std::string line = planned.case_line + (record.terms.empty() ? "" : " # " + record.terms);
  return fmt::format("attnbench{} --case {} --backend {} --pass {}{}{} --device {}", audits ? " audit" : "", double_quoted(line),
                     record.backend, name_of(record.pass), attention_words(planned, fields),
                     audits ? fmt::format(" --repeats {}", fields.audit_repeats) : "", record.device);
}

}  // namespace

/// One request and what became of it.
struct Coordinator::Exchange {
  int64_t request = 0;
  std::vector<std::pair<std::string, Pass>> waiting;  ///< runs without a record
  std::optional<Stage> stage;                         ///< the last one
  bool progressed = false;                            ///< at least one record came
  bool done = false;
  std::string end;  ///< why the worker is gone, unless done
};

Coordinator::Coordinator(WorkerSettings settings) : settings_(std::move(settings)) {
  ensure_worker();
}

void Coordinator::finish() {
  if (worker_) worker_->close(Clock::now() + kFarewell);
  worker_.reset();
}

WorkerProcess::Deadline Coordinator::deadline() const {
  return Clock::now() + as_milliseconds(settings_.timeout_s);
}

void Coordinator::start_worker() {
  log_begin_ = size_of(settings_.log);
  worker_ = std::make_unique<WorkerProcess>(settings_.command, settings_.log);
}

/// Waits for the hello; returns what was wrong, or nothing.
std::string Coordinator::greet() {
  const auto longest = std::max<std::chrono::milliseconds>(as_milliseconds(settings_.timeout_s), kShortestGreeting);
  const WorkerEvent event = worker_->next(Clock::now() + longest, [] {});
  switch (event.kind) {
    case WorkerEvent::Kind::ended:
      return "it ended before its hello";
    case WorkerEvent::Kind::silence:
      return fmt::format("no hello within {} s", longest.count() / 1000);
    case WorkerEvent::Kind::rubbish:
      return "expected its hello, got " + event.text;
    case WorkerEvent::Kind::message:
      break;
  }
  try {
    hello_ = JsonReader(event.message, "message").value("hello").get<Hello>();
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

void Coordinator::ensure_worker() {
  for (int failures = 0; !worker_;) {
    start_worker();
    std::string problem = greet();
    if (problem.empty()) return;
    const std::string ended = worker_->close(Clock::now() + kFarewell);
    const int exit_code = worker_->exit_code();
    worker_.reset();
    const std::string said = last_lines(settings_.log, log_begin_);
    if (exit_code == kExitUsage) throw UsageError(refusal_in(last_lines(settings_.log, log_begin_, 1)));
    if (++failures == kMostFailedStarts || exit_code == 127)
      throw InfrastructureError(fmt::format("no worker could be kept alive: {}; it {}; its log ends: {}", problem, ended,
                                            said.empty() ? "(empty)" : said));
  }
}

/// Ends the worker. `reason` is empty if it ended by itself. Returns how it ended, in which stage, and what it said last.
std::string Coordinator::bury(const std::string& reason, const std::optional<Stage>& stage) {
  const bool ended_by_itself = reason.empty();
  const std::string ended = worker_->close(ended_by_itself ? Clock::now() + kFarewell : Clock::now());
  worker_.reset();
  const std::string said = last_lines(settings_.log, log_begin_);
  std::string text = ended_by_itself ? "the worker " + ended : reason;
  text += stage ? fmt::format(" in stage {} of {} {}", stage->stage, stage->backend, name_of(stage->pass)) : " before any stage";
  if (!said.empty()) text += "; its log ends: " + said;
  return text;
}

Record Coordinator::complete(json line, const PlannedCase& planned, const RunFields& fields) const {
  const Record blank;
  json complete_line = to_line(blank);  // the run's fields need not come from a worker
  for (const char* key : {"schema", "record", "run", "suite", "safety", "repro"}) line[key] = complete_line[key];
  Record record = record_from(line);
  if (record.case_line != planned.case_line)
    throw std::runtime_error(fmt::format("result.case: expected \"{}\", got \"{}\"", planned.case_line, record.case_line));
  const Expect expect = planned.c.metadata.expect;
  if (record.status == Status::error) record.expect = expect;  // it may have ended before it read what the case says
  if (record.expect != expect)
    throw std::runtime_error(fmt::format("result.expect: the case says {}, got {}", name_of(expect), name_of(record.expect)));
  record.run = fields.run;
  record.suite = planned.suite;
  record.case_suite = planned.case_suite;
  record.safety = safety_of(planned, record, find_declaration(hello_.backends, who_computes_attention(record)), fields);
  record.terms = format_terms(planned.c);
  record.repro = repro_line(planned, record, fields);
  return record;
}

Record Coordinator::error_record(const PlannedCase& planned, const std::pair<std::string, Pass>& run, const RunFields& fields,
                                 const std::string& reason) const {
  const auto& [backend, pass] = run;
  const Declaration* declaration = find_declaration(hello_.backends, backend);
  Record record;
  record.case_line = planned.case_line;
  record.name = planned.c.metadata.name;
  record.expect = planned.c.metadata.expect;
  record.backend = backend;
  record.version = declaration ? declaration->version : "";
  record.device = device_text(hello_.device);
  record.sm = hello_.device.sm;
  record.pass = pass;
  record.status = Status::error;
  record.reason = reason;
  return complete(to_line(record), planned, fields);
}

/// Takes one message; returns what is wrong with it, or nothing.
std::string Coordinator::handle(const json& message, const PlannedCase& planned, const RunFields& fields, Exchange& exchange,
                                ResultSink& sink) {
  try {
    if (message.size() != 1) return "expected one of stage, result, comparison, done, got " + to_text(message).substr(0, 80);
    const JsonReader in(message, "message");
    const std::string kind = message.begin().key();
    const JsonReader body = in.object(kind.c_str());
    if (kind == "error") return fmt::format("the worker says: {}", body.text("message"));
    if (body.integer("request") != exchange.request)
      return fmt::format("{}: expected request {}, got {}", kind, exchange.request, body.integer("request"));
    if (kind == "stage") {
      exchange.stage = body.json().get<Stage>();
      sink.on_stage(planned, *exchange.stage);
    } else if (kind == "result") {
      const Record record = complete(body.value("record"), planned, fields);
      const auto run = std::find(exchange.waiting.begin(), exchange.waiting.end(), std::pair(record.backend, record.pass));
      if (run == exchange.waiting.end())
        return fmt::format("result: nobody asked for {} {}", record.backend, name_of(record.pass));
      exchange.waiting.erase(run);
      exchange.progressed = true;
      sink.take(record);
    } else if (kind == "comparison") {
      json line = body.value("comparison");
      if (line.is_object())
        line.update({{"schema", kSchema}, {"record", "comparison"}, {"run", fields.run}, {"suite", planned.suite}});
      Comparison comparison = comparison_from(line);
      comparison.case_line = planned.case_line;
      sink.take(comparison);
    } else if (kind == "done") {
      exchange.done = true;
    } else {
      return "expected one of stage, result, comparison, done, got " + kind;
    }
    return "";
  } catch (const RunError&) {
    throw;  // the results cannot be written: not the worker's fault
  } catch (const UsageError&) {
    throw;  // nor is a table of safety that cannot be read
  } catch (const std::exception& error) {
    return error.what();
  }
}

Coordinator::Exchange Coordinator::exchange(const PlannedCase& planned, const RunFields& fields, ResultSink& sink) {
  Exchange exchange{next_request_++, planned.runs, {}, false, false, {}};
  Request request;
  request.id = exchange.request;
  request.case_line = format_line(planned.c);
  request.runs = planned.runs;
  request.check_only = fields.check_only;
  request.dump = fields.dump;
  request.audit_repeats = fields.audit_repeats;
  worker_->send({{"request", request}}, deadline());  // a worker that does not read shows below: it has ended, or is silent
  while (!exchange.done) {
    const WorkerEvent event = worker_->next(deadline(), [&] { sink.tick(); });
    std::string wrong;
    switch (event.kind) {
      case WorkerEvent::Kind::message:
        wrong = handle(event.message, planned, fields, exchange, sink);
        break;
      case WorkerEvent::Kind::rubbish:
        wrong = "expected a JSON object, got " + event.text;
        break;
      case WorkerEvent::Kind::ended:
        exchange.end = bury("", exchange.stage);
        return exchange;
      case WorkerEvent::Kind::silence:
        exchange.end =
            bury(fmt::format("the worker was killed after {:g} s of silence (--timeout)", settings_.timeout_s), exchange.stage);
        return exchange;
    }
    if (wrong.empty()) continue;
    exchange.end = bury("the worker was killed because it did not keep to the protocol (" + wrong + ")", exchange.stage);
    return exchange;
  }
  return exchange;
}

void Coordinator::run_case(const PlannedCase& planned, const RunFields& fields, ResultSink& sink) {
  PlannedCase rest = planned;
  for (int fruitless = 0; !rest.runs.empty();) {
    ensure_worker();
    const Exchange exchange = this->exchange(rest, fields, sink);
    rest.runs = exchange.waiting;
    const auto fail = [&](const std::pair<std::string, Pass>& run, const std::string& reason) {
      sink.take(error_record(planned, run, fields, reason));
    };
    if (exchange.done) {
      for (const auto& run : rest.runs) fail(run, "the worker ended the request without a result for this run");
      break;
    }
    const auto guilty =
        exchange.stage ? std::find(rest.runs.begin(), rest.runs.end(), std::pair(exchange.stage->backend, exchange.stage->pass))
                       : rest.runs.end();
    if (guilty != rest.runs.end()) {
      fail(*guilty, exchange.end);
      rest.runs.erase(guilty);
      fruitless = 0;
    } else if (exchange.progressed) {
      fruitless = 0;
    } else if (++fruitless == kMostFruitlessAttempts) {
      for (const auto& run : rest.runs) fail(run, exchange.end);
      if (++fruitless_cases_ == kMostFruitlessCases)
        throw InfrastructureError(
            fmt::format("no worker could be kept alive: {} cases in a row ended before any backend began; "
                        "the last one: {}",
                        kMostFruitlessCases, exchange.end));
      return;
    }
  }
  fruitless_cases_ = 0;
}

}  // namespace attnbench
