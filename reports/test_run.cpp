#include "reports/test_run.hpp"

#include <cmath>

namespace attnbench {
namespace {

constexpr const char* kPadded = "attention b=2 hq=4 lq=128 d=128 mask=causal layout=padded";
constexpr const char* kPacked = "attention b=2 hq=4 lq=512 d=128 dtype=fp16";
constexpr const char* kSoftcap = "attention lq=16 d=128 softcap=30";

Record base_record(const std::string& suite, const std::string& case_line, const std::string& backend, Pass pass) {
  Record r;
  r.run = "20260102-030405-perf";
  r.suite = suite;
  r.case_line = case_line;
  r.backend = backend;
  r.version = "1.0";
  r.device = "cpu";
  r.pass = pass;
  r.oracle = "eigen";
  r.seconds = 0.25;
  r.repro = "attnbench --case \"" + case_line + "\" --backend " + backend + " --pass " + std::string(name_of(pass));
  return r;
}

TensorErrors good_errors() {
  TensorErrors e;
  e.max_abs = 0.00123;
  e.rel_l2 = 0.0004;
  e.max_z = 3.5;
  e.elements = 8192;
  e.gates = {{"z", {3.5, 7.31, 8192, Gate::Verdict::pass}}, {"bias", {0.5, 0.1, 12, Gate::Verdict::no_power}}};
  e.field_rules = {{"2x_eager", {0.001, 0.002, true}}};
  e.worst = Element{0, 1, 2, 3};
  return e;
}

WindowTime window(double first_us, bool converged) {
  WindowTime w;
  w.median_us = first_us + 1;
  w.p5_us = first_us;
  w.p95_us = first_us + 2;
  w.ci95_us = {first_us + 0.5, first_us + 1.5};
  w.n = 6;
  w.rounds = {{first_us, first_us}, {first_us + 1, first_us + 1}, {first_us + 2, first_us + 2}};
  w.converged = converged;
  return w;
}

Timing timing(double first_us, bool converged) {
  Timing t;
  t.regime = "cpu_hot";
  t.windows = {{"op", window(first_us, converged)}};
  t.tflops = 0.25;
  t.tflops_paper = 0.5;
  t.order_seed = 7;
  return t;
}

Record timed(const std::string& case_line, const std::string& backend, Pass pass, double first_us, bool converged) {
  Record r = base_record("perf", case_line, backend, pass);
  r.errors = {{pass == Pass::forward ? "o" : "dq", good_errors()}};
  r.time = timing(first_us, converged);
  r.memory = Memory{1 << 20, 1 << 10, 2 << 20};
  return r;
}

Record failing_backward() {
  Record r = timed(kPadded, "flash_varlen", Pass::backward, 987654, true);
  r.status = Status::failed;
  r.reason = "dq: z is 12.3, limit 7.31 at [0, 3, 17, 5]";
  TensorErrors& dq = r.errors["dq"];
  dq.max_abs = NAN;
  dq.bad = 17;
  dq.gates["z"] = {12.3, 7.31, 8192, Gate::Verdict::fail};
  dq.worst = Element{0, 3, 17, 5};
  dq.first_bad = Element{0, 3, 16, 0};
  dq.worst_got = INFINITY;
  dq.worst_expected = -0.5;
  r.safety = {true, true, "refused", "backward needs SM 8.0", "https://example.org/safety"};
  r.sm = 75;
  return r;
}

Declaration declared(const std::string& name, bool ours) {
  Declaration d;
  d.name = name;
  d.ours = ours;
  d.capabilities.devices = {"cpu"};
  d.capabilities.dtypes = {Dtype::bf16, Dtype::fp16, Dtype::fp32};
  d.capabilities.passes = {Pass::forward, Pass::backward};
  d.capabilities.layouts = {Layout::packed, Layout::padded};
  d.capabilities.masks = {Mask::none, Mask::causal};
  d.capabilities.aligns = {Align::bottom_right, Align::top_left};
  d.capabilities.strides = {Strides::contiguous};
  return d;
}

}  // namespace

RunData test_run() {
  RunData run;
  run.headers = {{"20260102-030405-perf",
                  {"attnbench", "--suite", "perf", "--filter", "it's"},
                  "2026-01-02T03:04:05Z",
                  {{"cpu", {{"model", "A \"fast\" CPU"}, {"threads", 2}}},
                   {"device", {{"kind", "cpu"}, {"index", 0}, {"sm", nullptr}, {"name", "Test CPU"}}},
                   {"backends", {{"not", "shown"}}}}}};
  run.backends["cpu"] = {declared("flash_varlen", true), declared("eager", false)};
  run.gated = {"flash_varlen"};
  run.records.push_back(timed(kPadded, "flash_varlen", Pass::forward, 100, true));
  run.records.back().time->windows["op+layout"] = window(200, true);
  run.records.push_back(timed(kPadded, "eager", Pass::forward, 400, false));
  run.records.push_back(timed(kPacked, "flash_varlen", Pass::forward, 1000, true));
  run.records.push_back(timed(kPacked, "eager", Pass::forward, 900, true));
  run.records.push_back(failing_backward());
  run.records.push_back(timed(kPadded, "eager", Pass::backward, 800, true));

  Record error = base_record("edge", kSoftcap, "eager", Pass::forward);
  error.status = Status::error;
  error.reason = "worker died, signal 11 while in stage \"judge\"\nlast words";
  run.records.push_back(error);
  Record unsupported = base_record("edge", kSoftcap, "flash_varlen", Pass::forward);
  unsupported.status = Status::unsupported;
  unsupported.reason = "no softcap";
  run.records.push_back(unsupported);

  Comparison forward{"20260102-030405-perf", "perf", kPadded, Pass::forward, {{"flash_varlen", "eager", "o", 0.015, 0.002}}};
  Comparison other{
      "20260102-030405-perf", "perf", "attention lq=64 d=64", Pass::forward, {{"eager", "flash_varlen", "o", 0.01, 0.003}}};
  Comparison backward{"20260102-030405-perf", "perf", kPadded, Pass::backward, {{"flash_varlen", "eager", "dq", NAN, 0.5}}};
  run.comparisons = {forward, other, backward};
  return run;
}

RunData run_in_two_regimes() {
  RunData run = test_run();
  Record& record = run.records.front();
  Timing sustained = *record.time;
  sustained.regime = "sustained";
  WindowTime& op = sustained.windows.at("op");
  op.median_us *= 1.1;
  op.calls_per_sample = 4;
  op.gpu = GpuConditions{1755.5, {{1755.5}}, 690, 64, {"hw_thermal", "sw_power_cap"}, 2, 1};
  record.time->regime = "cooled";
  record.time->windows.erase("op+layout");
  record.other_regimes = {sustained};
  return run;
}

}  // namespace attnbench
