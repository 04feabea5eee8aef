// Every gate just below and just above its limit; the limits are worked out here from the formulas, by hand.
#include "harness/worker/verdict_gates.hpp"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "harness/worker/test_calibration.hpp"

namespace attnbench {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kU = 0x1p-8;  // bf16

/// A tensor in which nothing but the gate under test can fail.
GateScale scale() {
  return {.limits = {&judge_test::formula_alone(), "flash", false, Dtype::bf16, "o"},
          .u = kU,
          .terms = 0,
          .emulator_rms = 0.8,
          .samples = 10000,
          .distinct = kInfinity};
}
ErrorStatistics quiet(int64_t elements) {
  ErrorStatistics s;
  s.elements = elements;
  return s;
}

/// `statistic` of the tensor has this limit: at it the gate passes, beyond it, or where it is no number, it fails.
void expect_limit(const char* gate, double ErrorStatistics::*statistic, ErrorStatistics s, const GateScale& scale, double limit) {
  const auto verdict = [&](double value) {
    s.*statistic = value;
    return error_gates(s, scale).at(gate).verdict;
  };
  EXPECT_EQ(verdict(limit * (1 - 1e-4)), Gate::Verdict::pass) << gate << " below " << limit;
  EXPECT_EQ(verdict(limit * (1 + 1e-4)), Gate::Verdict::fail) << gate << " above " << limit;
  EXPECT_EQ(verdict(kNan), Gate::Verdict::fail) << gate;
  EXPECT_EQ(verdict(kInfinity), Gate::Verdict::fail) << gate;
}

void expect_no_power(const char* gate, const ErrorStatistics& s, const GateScale& scale) {
  EXPECT_EQ(error_gates(s, scale).at(gate).verdict, Gate::Verdict::no_power) << gate;
}

TEST(Gates, ZOfOneElement) {
  const auto z = &ErrorStatistics::max_z;
  expect_limit("z", z, quiet(1), scale(), 6.5);
  expect_limit("z", z, quiet(131072), scale(), 7.2515);     // sqrt(2 ln(2^18 / 1e-6))
  expect_limit("z", z, quiet(100000000), scale(), 8.1153);  // sqrt(2 ln(2e8 / 1e-6))
}

/// What the emulator has beyond a limit is no error of a kernel, as far as a correct one can have it.
TEST(Gates, KnowWhatTheEmulatorHas) {
  const auto z = &ErrorStatistics::max_z, gain = &ErrorStatistics::gain;
  GateScale s = scale();
  s.emulator_z = 5;
  s.emulator_gain = 0.1 * kU;
  expect_limit("z", z, quiet(1), s, 6.5);
  expect_limit("bias", gain, quiet(10000), s, 0.2 * kU);
  s.emulator_z = 6.4;
  s.emulator_gain = 0.2 * kU;
  expect_limit("z", z, quiet(1), s, 8);
  expect_limit("bias", gain, quiet(10000), s, 0.25 * kU);
  for (double broken : {100.0, kInfinity}) {
    s.emulator_z = s.emulator_gain = broken;
    expect_limit("z", z, quiet(1), s, 9.75);
    expect_limit("bias", gain, quiet(10000), s, 1.25 * kU);
  }
  s.emulator_z = s.emulator_gain = kNan;
  expect_limit("z", z, quiet(1), s, 6.5);
  expect_limit("bias", gain, quiet(10000), s, 0.2 * kU);
}

/// A GPU's tensor cores may have scores of 65536 wrong by more than truncated P would show; ordinary ones are no matter.
TEST(Gates, HaveNoBiasNextToHugeScoresOnAGpu) {
  GateScale s = scale();
  s.huge_scores = 64 * 65536.0 / 8;
  expect_no_power("bias", quiet(10000), s);
  Calibration of_cpu = judge_test::formula_alone();
  of_cpu.constants.truncation = 0;
  s.limits.calibration = &of_cpu;
  EXPECT_NE(error_gates(quiet(10000), s).at("bias").verdict, Gate::Verdict::no_power);
}

/// Of a sigma^2 from few draws: the tail of Student's t, which is known in closed form with two degrees of freedom.
TEST(Gates, ZOfAnEstimatedVariance) {
  const GateConstants& c = judge_test::formula_alone().constants;
  GateScale s = scale();
  s.limits.variance_freedom = 31;
  expect_limit("z", &ErrorStatistics::max_z, quiet(131072), s, 11.7499);  // sqrt(31 ((2^18 / 1e-6)^(2/31) - 1))
  EXPECT_EQ(z_limit(131072, s), deviations(131072, 31, c));
  s.limits.variance_freedom = 1e9;
  EXPECT_NEAR(z_limit(131072, s), z_limit(131072, scale()), 1e-4);
  const auto chance = [](double t) { return 1 - t / std::sqrt(2 + t * t); };
  EXPECT_LE(chance(deviations(1, 2, c)), c.false_alarms);
  EXPECT_GT(chance(deviations(1, kInfinity, c)), 1e4 * c.false_alarms);
}

TEST(Gates, RmsOfATensor) {
  const auto rms = &ErrorStatistics::rms_z;
  expect_limit("rms", rms, quiet(10000), scale(), 0.848);  // r = 1 + 6 / 100
  GateScale s = scale();
  s.samples = 1e8;
  expect_limit("rms", rms, quiet(10000), s, 0.84);  // r = 1.05
  s = scale();
  s.emulator_rms = 0.1;
  expect_limit("rms", rms, quiet(10000), s, 0.53);  // the floor of 0.5
  s = scale();
  s.allowance = 0.1;
  expect_limit("rms", rms, quiet(10000), s, 1.148);
  s = scale();
  s.terms = 0x1p20;
  ErrorStatistics strong = quiet(10000);
  strong.signal = 100;
  expect_limit("rms", rms, strong, s, 1.77777);  // hypot(0.848, 100 / 64)
  s = scale();
  s.distinct = 400;
  expect_limit("rms", rms, quiet(10000), s, 1.04);  // r = 1 + 6 / 20
}

TEST(Gates, BiasOfATensor) {
  const auto gain = &ErrorStatistics::gain;
  expect_limit("bias", gain, quiet(10000), scale(), 0.2 * kU);
  ErrorStatistics coherent = quiet(10000);
  coherent.gain_error = 2e-4;
  expect_limit("bias", gain, coherent, scale(), 1.078e-3);  // 5.39 x 2e-4
  GateScale s = scale();
  s.terms = 0x1p20;
  expect_limit("bias", gain, quiet(10000), s, 0.2 * kU + 0x1p-6);
  s = scale();
  s.distinct = 100;
  expect_limit("bias", gain, quiet(10000), s, 1.21560e-3);  // 5.39 u / sqrt(300)
}

/// Where only outputs are rounded, the gain is that beside the rounded expectation, and so is its limit.
TEST(Gates, BiasWhereOnlyOutputsAreRounded) {
  const auto gain = &ErrorStatistics::gain_beside_rounded;
  GateScale s = scale();
  s.only_outputs_rounded = true;
  ErrorStatistics inner = quiet(10000);
  inner.gain = 1;  // plays no part
  inner.inner_gain = 1e-6;
  expect_limit("bias", gain, inner, s, 1e-6);
  inner.inner_gain_error = 1e-6;
  expect_limit("bias", gain, inner, s, 6.39e-6);  // 1e-6 + 5.39e-6
  inner.gain_step = 1e-7;
  expect_limit("bias", gain, inner, s, 7.35840e-6);   // and 5.39^2 / 3 of 1e-7
  s.distinct = 2500;                                  // four of each value
  expect_limit("bias", gain, inner, s, 1.565361e-5);  // 1e-6 + 2 x 5.39e-6 + 4 x 9.68403e-7
  s.terms = 0x1p10;
  expect_limit("bias", gain, inner, s, 1.565361e-5 + 0x1p-16);
  inner.inner_gain = 0.6 * kU;
  expect_no_power("bias", inner, s);
}

/// The factor of the cell that the tensor belongs to, and of no other.
TEST(Gates, LimitsAreTheFormulaTimesTheFactorOfTheirCell) {
  Calibration calibrated = judge_test::formula_alone();
  const auto set = [&](const char* gate, double factor) {
    calibrated.cells[{"flash", false, Dtype::bf16, "o", gate, decade_of(10000)}].factor = factor;
  };
  set("z", 0.5);
  set("rms", 0.9);
  set("bias", 0.1);
  GateScale s = scale();
  s.limits.calibration = &calibrated;
  expect_limit("z", &ErrorStatistics::max_z, quiet(10000), s, z_limit(10000, scale()) / 2);
  expect_limit("rms", &ErrorStatistics::rms_z, quiet(10000), s, 0.9 * 0.848);
  expect_limit("bias", &ErrorStatistics::gain, quiet(10000), s, 0.02 * kU);
  expect_limit("bias", &ErrorStatistics::gain, quiet(100000), s, 0.2 * kU);
  s.limits.dtype = Dtype::fp16;
  expect_limit("bias", &ErrorStatistics::gain, quiet(10000), s, 0.2 * kU);
  EXPECT_EQ(error_gates(quiet(10000), s).at("bias").formula, 0.2 * kU);
}

TEST(Gates, HaveNoPowerWhereTheyCouldNotTell) {
  GateScale s = scale();
  s.samples = 0;
  expect_no_power("rms", quiet(10000), s);
  s.samples = 143;  // r = 1.5017
  expect_no_power("rms", quiet(10000), s);
  s.samples = 145;  // r = 1.4983
  EXPECT_EQ(error_gates(quiet(10000), s).at("rms").verdict, Gate::Verdict::pass);
  ErrorStatistics coherent = quiet(10000);
  coherent.gain_error = 0.6 * kU / 5.39 * 1.001;
  expect_no_power("bias", coherent, scale());
  coherent.gain_error = 0.6 * kU / 5.39 * 0.999;
  EXPECT_EQ(error_gates(coherent, scale()).at("bias").verdict, Gate::Verdict::pass);
}

TEST(Gates, LseAndCounts) {
  ErrorStatistics s = quiet(100);
  for (const auto& [value, verdict] :
       {std::pair(3.999, Gate::Verdict::pass), std::pair(4.001, Gate::Verdict::fail), std::pair(kNan, Gate::Verdict::fail)}) {
    s.max_z = value;
    EXPECT_EQ(lse_gates(s, scale().limits).at("lse").verdict, verdict) << value;
    EXPECT_EQ(lse_gates(s, scale().limits).at("rms").verdict, Gate::Verdict::pass) << value;
    s.rms_z = value;
    EXPECT_EQ(lse_gates(s, scale().limits).at("rms").verdict, verdict) << value;
    s.rms_z = 0;
  }
  s = quiet(100);
  s.exact_elements = 10;
  EXPECT_EQ(exact_gates(s).at("nonfinite").verdict, Gate::Verdict::pass);
  EXPECT_EQ(exact_gates(s).at("exact_zero").verdict, Gate::Verdict::pass);
  s.nonfinite_mismatches = s.exact_violations = 1;
  EXPECT_EQ(exact_gates(s).at("nonfinite").verdict, Gate::Verdict::fail);
  EXPECT_EQ(exact_gates(s).at("exact_zero").verdict, Gate::Verdict::fail);
}

}  // namespace
}  // namespace attnbench
