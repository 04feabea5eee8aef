// A worker for tests of the coordinator: it computes nothing and behaves as --behaviour says.
//   --behaviour B           always, for the run that it is made for; --on BACKEND/PASS names that run (else: every one)
//   --start B               instead of saying hello: exit=N, rubbish, silent
//   --status STATUS         of every record (passed)
//   --wrong KEY=VALUE       every case that has this key and value is failed; several: all of them
//   --least-lq N            … and as many queries in its longest sequence
//   --once FILE             misbehave only if FILE does not exist, and make it
//   --varies BACKEND        in an audit its o and dq differ; --promises: and it promised that they do not
//   --delay-ms N            before each record
//   --gpu-backend           declare a third backend, gpu_only, which has nothing for a CPU
//   --gpu-memory-gib N      say that the device has this much memory
//   --nobody-is-ours        declare no backend as ours
//   --planted               declare planted backends as well: flash_varlen:caught, :equivalent and :survives, eager:caught
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>

#include <fmt/format.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include "harness/run/case_keys.hpp"
#include "harness/run/json_reader.hpp"
#include "harness/run/planted.hpp"
#include "harness/run/protocol.hpp"

namespace attnbench {
namespace {

using nlohmann::json;

struct Options {
  std::string device = "cpu", behaviour, on, start, status = "passed", once, varies;
  std::vector<std::string> wrong;
  int requests = -1, replies = -1, delay_ms = 0;
  int64_t least_lq = 0, gpu_memory_gib = 0;
  bool gpu_backend = false, nobody_is_ours = false, planted = false, promises = false;
};

[[noreturn]] void sleep_forever() {
  for (;;) pause();
}

/// Writes past a block of the heap until an allocation notices; a sanitizer notices at once.
void corrupt_heap() {
  constexpr size_t kBlock = 40, kPast = 4096;
  volatile char* block = static_cast<char*>(std::malloc(kBlock));
  for (size_t i = kBlock; i < kPast; ++i) block[i] = '\x55';
  for (int i = 0; i < 1000; ++i) std::free(std::malloc(kPast + kBlock * static_cast<size_t>(i)));
}

class FakeWorker {
 public:
  explicit FakeWorker(Options options) : options_(std::move(options)) {}

  int serve() {
    begin();
    std::FILE* requests = fdopen(options_.requests, "r");
    std::string line;
    for (int c; (c = std::fgetc(requests)) != EOF;) {
      if (c != '\n') {
        line += static_cast<char>(c);
        continue;
      }
      answer(json::parse(line).at("request").get<Request>());
      line.clear();
    }
    return 0;
  }

 private:
  void write_bytes(const std::string& bytes) const {
    if (write(options_.replies, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) _exit(9);
  }
  void say(const json& message) const { write_bytes(to_text(message) + '\n'); }

  void begin() const {
    fmt::print(stderr, "fake worker: begins\n");
    if (options_.start.starts_with("exit=")) {
      fmt::print(stderr, "fake worker: will not start\n");
      std::exit(std::stoi(options_.start.substr(5)));
    }
    if (options_.start == "rubbish") write_bytes("Segmentation fault\n");
    if (options_.start == "silent") sleep_forever();
    say({{"hello", hello()}});
  }

  Device device() const { return {options_.device, 0, options_.device == "cpu" ? std::nullopt : std::optional(90), "no device"}; }

  Hello hello() const {
    Declaration ours;
    ours.name = "flash_varlen";
    ours.version = "1.2";
    ours.implementation = "attnbench";
    ours.ours = !options_.nobody_is_ours;
    ours.capabilities.devices = {"cpu", "cuda"};
    ours.capabilities.dtypes = {Dtype::bf16, Dtype::fp16, Dtype::fp32};
    ours.capabilities.passes = {Pass::forward, Pass::backward};
    ours.capabilities.layouts = {Layout::packed};
    ours.capabilities.masks = {Mask::none, Mask::causal};
    ours.capabilities.aligns = {Align::bottom_right};
    ours.capabilities.strides = {Strides::contiguous};
    Declaration eager = ours;
    eager.name = "eager";
    eager.ours = false;
    Declaration gpu = eager;
    gpu.name = "gpu_only";
    gpu.capabilities.devices = {"cuda"};
    std::vector<Declaration> backends{ours, eager};
    if (options_.gpu_backend) backends.push_back(gpu);
    if (options_.planted)
      for (const char* name : {"flash_varlen:caught", "flash_varlen:equivalent", "flash_varlen:survives", "eager:caught"}) {
        backends.push_back(eager);
        backends.back().name = name;
      }
    json environment = {{"threads", 1}};
    if (options_.gpu_memory_gib > 0) environment["gpu"]["memory_bytes"] = options_.gpu_memory_gib << 30;
    return {kProtocol, "fake_worker", device(), backends, environment};
  }

  Record record(const Case& c, const std::string& backend, Pass pass) const {
    Record record;
    record.case_line = format_case(c);
    record.backend = backend;
    record.version = "1.2";
    record.device = options_.device;
    record.pass = pass;
    record.expect = c.metadata.expect;
    for (Status status : {Status::passed, Status::failed, Status::mistrusted, Status::unsupported, Status::skipped})
      if (options_.status == name_of(status)) record.status = status;
    if (is_wrong(c, backend, pass)) record.status = Status::failed;
    if (record.status != Status::passed) record.reason = "as the test asked";
    for (const Declaration& declaration : hello().backends)
      if (const auto why = why_not(declaration, c, pass, device()); why && declaration.name == backend) {
        record.status = Status::unsupported;
        record.reason = *why;
      }
    if (record.status == Status::passed) judge(record);
    return record;
  }

  /// A record with a statistic, and the verdict after which its defect is called.
  static void judge(Record& record) {
    const std::string defect = defect_of(record.backend);
    if (defect == "equivalent") {
      record.status = Status::unsupported;
      record.reason = "equivalent: nothing is dropped";
      return;
    }
    Gate& rms = record.errors[record.pass == Pass::forward ? "o" : "dv"].gates["rms"];
    rms = {defect == "survives" && record.pass == Pass::backward ? 0.97 : 0.5, 1, 64, Gate::Verdict::pass};
    if (defect != "caught") return;
    rms.value = 12;
    rms.verdict = Gate::Verdict::fail;
    record.status = Status::failed;
    record.reason = "gate rms is 12, its limit 1";
  }

  void audit(Record& record, int64_t repeats) const {
    Invariance i;
    i.tensor = record.pass == Pass::forward ? "o" : "dq";
    i.elements = 64;
    i.compared = repeats;
    i.promised = options_.promises;
    if (options_.varies == record.backend) {
      i.outcome = Invariance::Outcome::differs;
      i.differing = 2;
      i.changed = 3;
      i.max_ulp = 1;
      i.where = "repeat 37 of 100";
      i.first = {0, 1, 2, 3};
      i.judged = 0.5;
      i.got = 0.25;
      if (i.promised) {
        record.status = Status::failed;
        record.reason = "repeats: " + sentence_of(i);
      }
    }
    record.invariance = {i};
  }

  /// Where --behaviour says so: what no result can be.
  void contradict(Record& record) const {
    if (!is_on(record.backend, record.pass)) return;
    if (options_.behaviour == "pass-unjudged") record.errors.clear();
    if (options_.behaviour == "pass-failing") record.errors.begin()->second.gates["rms"].verdict = Gate::Verdict::fail;
    if (options_.behaviour == "expect-otherwise") record.expect = Expect::must_throw;
  }

  bool is_on(const std::string& backend, Pass pass) const {
    return options_.on.empty() || options_.on == fmt::format("{}/{}", backend, name_of(pass));
  }

  /// A defect that some cases show.
  bool is_wrong(const Case& c, const std::string& backend, Pass pass) const {
    if (options_.wrong.empty() || !is_on(backend, pass)) return false;
    for (const std::string& pair : options_.wrong) {
      const size_t equals = pair.find('=');
      const bool is_metadata = pair.starts_with("expect=");
      const Key& key = find_key(is_metadata ? metadata_keys() : case_keys(), {pair.substr(0, equals), "", "--wrong"});
      if (key.format(c) != pair.substr(equals + 1)) return false;
    }
    return sequence_lengths(c.problem, c.seed).max_q() >= options_.least_lq;
  }

  bool misbehaves(const std::string& backend, Pass pass) const {
    if (options_.behaviour.empty()) return false;
    if (!is_on(backend, pass)) return false;
    if (options_.once.empty()) return true;
    const bool first = !std::ifstream(options_.once).good();
    std::ofstream(options_.once) << "done";
    return first;
  }

  void misbehave(int64_t request, const Case& c) const {
    const std::string& how = options_.behaviour;
    fmt::print(stderr, "fake worker: about to {}\n", how);
    if (how == "crash") {
      std::signal(SIGSEGV, SIG_DFL);  // sanitizers would turn it into an exit
      raise(SIGSEGV);
    }
    if (how == "abort") std::abort();
    if (how == "corrupt-heap") corrupt_heap();
    if (how == "exit") std::exit(3);
    if (how == "lose-context") {  // as attnbench-worker does where its CUDA context is unusable
      fmt::print(stderr, "the CUDA context failed: an illegal memory access was encountered\n");
      std::exit(3);
    }
    if (how == "hang") sleep_forever();
    if (how == "rubbish") write_bytes("\x01\xff not JSON\n");
    if (how == "nested") {
      constexpr size_t kDepth = 200'000;
      write_bytes("{\"result\":" + std::string(kDepth, '[') + std::string(kDepth, ']') + "}\n");
    }
    if (how == "cut") {
      write_bytes("{\"result\":{\"request\":1,\"rec");
      _exit(0);
    }
    if (how == "unasked") say({{"result", {{"request", request}, {"record", to_line(record(c, "nobody", Pass::forward))}}}});
    if (how == "other-case") {
      const Case other = parse_case("attention lq=99 d=64");
      say({{"result", {{"request", request}, {"record", to_line(record(other, "eager", Pass::forward))}}}});
    }
    if (how == "trickle") {
      for (;;) {
        write_bytes("x");
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
    }
  }

  void answer(const Request& request) const {
    const Case c = parse_case(request.case_line);
    if (options_.behaviour == "die-early") _exit(5);
    for (const auto& [backend, pass] : request.runs) {
      say({{"stage", Stage{request.id, backend, pass, "judge"}}});
      std::this_thread::sleep_for(std::chrono::milliseconds(options_.delay_ms));
      if (misbehaves(backend, pass)) {
        if (options_.behaviour == "forget") continue;
        misbehave(request.id, c);
      }
      Record answer = record(c, backend, pass);
      contradict(answer);
      if (request.audit_repeats > 0) audit(answer, request.audit_repeats);
      say({{"result", {{"request", request.id}, {"record", to_line(answer)}}}});
    }
    const Comparison comparison{"", "", format_case(c), Pass::forward, {{"flash_varlen", "eager", "o", 0.5, 0.25}}};
    say({{"comparison", {{"request", request.id}, {"comparison", to_line(comparison)}}}});
    say({{"done", {{"request", request.id}}}});
  }

  Options options_;
};

}  // namespace
}  // namespace attnbench

int main(int argc, char** argv) {
  attnbench::Options options;
  CLI::App app("A worker for tests.");
  app.add_option("--device", options.device);
  app.add_option("--requests-fd", options.requests);
  app.add_option("--replies-fd", options.replies);
  app.add_option("--behaviour", options.behaviour);
  app.add_option("--on", options.on);
  app.add_option("--start", options.start);
  app.add_option("--status", options.status);
  app.add_option("--wrong", options.wrong);
  app.add_option("--least-lq", options.least_lq);
  app.add_option("--once", options.once);
  app.add_option("--delay-ms", options.delay_ms);
  app.add_option("--varies", options.varies);
  app.add_flag("--promises", options.promises);
  app.add_flag("--gpu-backend", options.gpu_backend);
  app.add_option("--gpu-memory-gib", options.gpu_memory_gib);
  app.add_flag("--nobody-is-ours", options.nobody_is_ours);
  app.add_flag("--planted", options.planted);
  CLI11_PARSE(app, argc, argv);
  return attnbench::FakeWorker(options).serve();
}
