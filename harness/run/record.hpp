// The record: one JSON line for each (case, backend, pass), schema 1. results.jsonl is the source of every report.
// Non-finite numbers are written as the strings "nan", "inf", "-inf" (JSON has none), others with 9 significant digits.
#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "harness/run/case.hpp"
#include "harness/run/invariance.hpp"
#include "harness/run/tensor_failure.hpp"

namespace attnbench {

inline constexpr int kSchema = 1;

enum class Status { passed, failed, mistrusted, unsupported, skipped, error };
std::string_view name_of(Status);

/// One gate (harness/worker/verdict_gates.hpp) on one tensor.
struct Gate {
  enum class Verdict { pass, fail, no_power };
  double value = 0;  ///< the statistic
  double limit = 0;  ///< pass: value <= limit
  int64_t n = 0;     ///< elements (or effective sample size) behind it
  Verdict verdict = Verdict::pass;
  double formula = 0;  ///< the limit before its factor (calibration.hpp) and the emulator's room (worker/verdict_gates.hpp)
};
std::string_view name_of(Gate::Verdict);

/// What a rule of the field's own tests would have said (harness/worker/field_rules.hpp): error <= limit.
struct FieldRule {
  double error = 0, limit = 0;
  bool passed = false;
};

struct TensorErrors {
  bool by_gates_alone = false;  ///< no elements were compared: of the numbers below only max_z and elements mean something
  double max_abs = 0, rel_l2 = 0, cosine = 1;
  double max_z = 0;
  int64_t elements = 0;
  int64_t bad = 0;                    ///< elements beyond the limit of gate z, or non-finite where the oracle is finite
  std::map<std::string, Gate> gates;  ///< "nonfinite", "exact_zero", "z", "rms", "bias", "lse"
  std::map<std::string, FieldRule> field_rules;  ///< "2x_eager", "assert_close", "cudnn_2e-2", "pytorch_test"
  std::optional<Element> first_bad;
  std::optional<Element> worst;
  double worst_got = 0, worst_expected = 0;
  std::optional<TensorFailure> failure;  ///< where a gate failed; absent: none did, or an old record
};

/// What the GPU did while a window was sampled.
struct GpuConditions {
  std::optional<double> sm_mhz;                    ///< median of the samples' SM clocks; unset: no sample has one
  std::vector<std::vector<double>> sm_mhz_rounds;  ///< like WindowTime::rounds; nan: the two ends were not on one SM
  std::optional<double> power_w;                   ///< median of the sensor's readings; unset: no reading
  std::optional<double> temperature_c;             ///< highest reading
  std::vector<std::string> throttle;  ///< reasons seen: "sw_power_cap", "hw_slowdown", … (harness/worker/gpu_monitor.hpp)
  int64_t samples_without_hold = 0;   ///< the launches were not held back until all were queued: gaps between them count
  int64_t rounds_retaken = 0;         ///< under hardware or thermal slowdown; one kept in spite of it names that in throttle
};

struct WindowTime {
  double median_us = 0, p5_us = 0, p95_us = 0;
  std::array<double, 2> ci95_us{};          ///< of the median
  int64_t n = 0;                            ///< samples
  std::vector<std::vector<double>> rounds;  ///< microseconds per call; a round is the statistical unit
  bool converged = true;                    ///< CI half-width within the target; else shown as unconverged
  int64_t calls_per_sample = 0;             ///< caches are flushed before the first of them; 0: an old record, which does not say
  std::optional<GpuConditions> gpu;         ///< absent on a CPU
};

/// Times of different regimes are not comparable.
///   cpu_hot    caches as the operations leave them
///   cooled     200 ms of idle before each backend's samples of a round, L2 overwritten before each sample
///   sustained  warm and back to back without idle, L2 overwritten before each sample
struct Timing {
  std::string regime;
  std::map<std::string, WindowTime> windows;  ///< "op", "op+layout", "autograd"
  double tflops = 0;                          ///< exact visible pairs over the median of the main window
  double tflops_paper = 0;                    ///< 4 b h s^2 d, halved when causal, backward x 2.5
  uint64_t order_seed = 0;
};

/// "op", or "autograd" where that is the only way to a backward: what speeds are about.
inline const char* main_window(const Timing& timing) {
  return timing.windows.contains("op") ? "op" : "autograd";
}

struct Memory {
  int64_t peak_bytes = 0;       ///< allocated during the pass, outputs included, inputs not
  int64_t workspace_bytes = 0;  ///< peak less the outputs
  int64_t predicted_bytes = 0;  ///< before the case ran
};

struct Safety {
  bool sm_below_8 = false;                      ///< whatever the pass and the head dim
  bool backward_d_above_64_sm_below_8 = false;  ///< d: the head dim
  std::string verdict = "ok";                   ///< ok | refused | silently_unsafe
  std::string reason, source;
  /// The case's assume_sm, else --assume-sm: asked about instead of the device's; 75 = SM 7.5.
  std::optional<int> assumed_sm = {};
};

/// Where the seconds of a record went (worker/spending.hpp). What the backends of a case share stands in the record that asked
/// first.
struct Spending {
  struct Item {
    double seconds = 0;
    int64_t times = 0;
  };
  std::map<std::string, Item> items;  ///< "inputs", "oracle", "emulator", "calls", "poison", "gates"
  double fastest_call_s = 0;          ///< 0: none
};

struct Record {
  // fields of the run, filled by the coordinator
  std::string run, suite;
  std::string case_suite;  ///< in whose file the case stands, which `suite` may include; empty: in none, or an older version's
  Safety safety;
  std::string terms;  ///< the case's metadata on which the verdict depends: "expect=must_differ instead=top_left"; may be empty
  // fields of the worker
  std::string case_line;  ///< canonical identity
  std::string name;       ///< metadata name, may be empty
  Expect expect = Expect::equal;
  std::string backend, version, device;  ///< device: "cpu", "cuda:0"
  std::optional<int> sm;
  Pass pass = Pass::forward;
  Status status = Status::passed;
  std::string reason;                          ///< a sentence unless passed
  std::string oracle;                          ///< "eigen" or "torch": which float64 oracle judged
  std::map<std::string, TensorErrors> errors;  ///< "o", "lse" | "dq", "dk", "dv", "dq_given_o", "dk_given_o"
  std::optional<Timing> time;                  ///< absent unless passed; in the first regime that was measured
  std::vector<Timing> other_regimes;           ///< of a record with a time: the others; on a GPU sustained has every window
  std::optional<Memory> memory;
  std::vector<Invariance> invariance;      ///< bits held against the judged ones: of an audit, and of a case with repeats
  std::optional<TrainingCurves> training;  ///< of a case of that operation
  std::string kernels;                     ///< what a dispatcher picked; empty: not asked
  std::string attention;                   ///< of a layer: the backend that computes its attention; empty: it does so itself
  std::string choice;                      ///< of a layer with a choice: what was picked, and why
  double seconds = 0;                      ///< spent on this record, judging included
  Spending spent;                          ///< their parts; empty in records of older versions
  std::string repro;
};

/// An oracle has judged it, with any verdict.
inline bool is_judged(const Record& record) {
  return record.status == Status::passed || record.status == Status::failed || record.status == Status::mistrusted;
}

/// Differences between two backends on one tensor of one case: users ask how backends compare with each other.
struct Difference {
  std::string a, b, tensor;
  double max_abs = 0, rel_l2 = 0;
};
struct Comparison {
  std::string run, suite, case_line;
  Pass pass = Pass::forward;
  std::vector<Difference> differences;
};

/// First line of a run, and one for each resume.
struct RunHeader {
  std::string run;
  std::vector<std::string> argv;
  std::string started;  ///< ISO 8601, UTC
  nlohmann::json environment;
};

nlohmann::json to_line(const Record&);      ///< {"schema":1,"record":"result",…}
nlohmann::json to_line(const Comparison&);  ///< {"schema":1,"record":"comparison",…}
nlohmann::json to_line(const RunHeader&);   ///< {"schema":1,"record":"run",…}

/// Throw std::runtime_error with a sentence on a missing field, a wrong type or an unknown schema.
Record record_from(const nlohmann::json&);
Comparison comparison_from(const nlohmann::json&);
RunHeader run_header_from(const nlohmann::json&);

}  // namespace attnbench
