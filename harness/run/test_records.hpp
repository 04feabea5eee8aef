// Records for tests.
#pragma once

#include <limits>

#include "harness/run/record.hpp"

namespace attnbench {

/// A record in which no field has its default.
inline Record full_record() {
  Record record;
  record.run = "20250102-030405-gradient";
  record.suite = "gradient";
  record.case_suite = "parity";
  record.safety = {true, true, "refused", "a reason", "https://example.org/1", std::nullopt};
  record.case_line = "attention lq=64 d=128 seed=7";
  record.name = "token_tail";
  record.expect = Expect::must_differ;
  record.backend = "flash_varlen";
  record.version = "0.1.0";
  record.device = "cuda:0";
  record.sm = 90;
  record.pass = Pass::backward;
  record.oracle = "eigen";
  TensorErrors errors;
  errors.max_abs = 0.25;
  errors.rel_l2 = std::numeric_limits<double>::quiet_NaN();
  errors.cosine = 0.5;
  errors.max_z = std::numeric_limits<double>::infinity();
  errors.elements = 8192;
  errors.bad = 3;
  errors.gates["z"] = {7.5, 7.25, 8192, Gate::Verdict::fail};
  errors.gates["bias"] = {-std::numeric_limits<double>::infinity(), 1e-300, 17, Gate::Verdict::no_power};
  errors.field_rules["2x_eager"] = {0.1, 0.2, true};
  errors.first_bad = Element{0, 1, 2, 3};
  errors.worst = Element{3, 2, 1, 0};
  errors.worst_got = 0.1;
  errors.worst_expected = -0.300000012;
  TensorFailure failure{1, 2, 3, std::numeric_limits<double>::infinity(), 4, 5, -1, 6, 7, 8, 9, 10, 11, 12, {}, {}};
  failure.pattern = {"one", "last", "group", "block", "the last token of sequence 1", 3, 4, 5, 6};
  failure.map = {"percent_bad", 1, 2, 16, {{0, 100}, {7, -1}}};
  errors.failure = failure;
  record.errors["dq"] = errors;
  WindowTime window{12.5, 11, 14, {12, 13}, 20, {{12.5, 12.25}, {13}}, false, 4, {}};
  window.gpu = GpuConditions{1980, {{1980, std::numeric_limits<double>::quiet_NaN()}, {1975}}, 512.5, 61, {"sw_power_cap"}, 2, 1};
  record.time = Timing{"cooled", {{"op", window}}, 1.5, 2.5, 18446744073709551615ull};
  window.gpu = GpuConditions{};
  record.other_regimes = {Timing{"sustained", {{"op", window}, {"autograd", window}}, 1.25, 2.25, 3}};
  record.invariance = {{Relation::repeats, "dk", Invariance::Outcome::equal, true, "", 1000, 0, 4096},
                       {Relation::concurrency, "dq", Invariance::Outcome::differs, false, "", 12, 3, 8192, 7,
                        std::numeric_limits<double>::infinity(), "repeat 2 of 12, with 1 thread", Element{0, 1, 2, 3}, 0.25,
                        std::numeric_limits<double>::quiet_NaN()},
                       {Relation::packing, "dv", Invariance::Outcome::not_supported, true, "layout=padded: it takes packed"}};
  record.memory = Memory{1, 2, 3};
  record.kernels = "math";
  record.attention = "eager";
  record.choice = "eager: nothing is known against it";
  record.seconds = 1.75;
  record.spent = {{{"oracle", {0.5, 2}}, {"gates", {0.25, 1}}}, 0.125};
  record.repro = "attnbench --case \"…\"";
  return record;
}

}  // namespace attnbench
