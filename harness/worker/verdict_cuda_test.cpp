// Judging on a GPU: the same reference and the same verdicts as on the CPU, in bounded memory and little time.
#include "harness/worker/verdict.hpp"

#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "harness/attention/emulator.hpp"
#include "harness/attention/test_reference.hpp"
#include "harness/run/case_text.hpp"
#include "harness/run/suite.hpp"
#include "harness/worker/cuda_device.hpp"
#include "harness/worker/test_judge.hpp"
#include "harness/worker/verdict_statistics.hpp"

namespace attnbench {
namespace {

using namespace judge_test;

const Device& gpu() {
  static const Device device = find_cuda_device(0);
  return device;
}

Outputs copy_to(const Outputs& outputs, const at::Device& device) {
  Outputs copy;
  for (at::Tensor Outputs::*t : {&Outputs::o, &Outputs::lse, &Outputs::dq, &Outputs::dk, &Outputs::dv})
    copy.*t = (outputs.*t).to(device, /*non_blocking=*/false, /*copy=*/true);
  return copy;
}

TEST(TwoOraclesOnParity, AgreeOnTheCasesThatAreMadeForAGpu) {
  int64_t cases = 0;
  for (const SuiteCase& entry : load_suite("parity").cases) {
    const Case& c = entry.c;
    if (c.metadata.device != DeviceKind::cuda) continue;
    ++cases;
    const Inputs here = make_inputs(c, Conventions::Poison::nan), there = make_inputs(c, Conventions::Poison::nan, gpu());
    const Oracle eigen(OracleKind::eigen, c, here, flash(), Conventions::EmptyRow::zero);
    const Oracle torch(OracleKind::torch, c, there, flash(), Conventions::EmptyRow::zero);
    const Reference a = eigen.reference(), b = torch.reference();
    expect_same(a, b, format_case(c) + " ");
    const at::Tensor o = emulate(c, there, flash(), Conventions::EmptyRow::zero).o;
    const auto x = eigen.given_output(a, o.to(at::kCPU)), y = torch.given_output(b, o);
    expect_same(x.dq, y.dq, format_case(c) + " dq given o");
    expect_same(x.dk, y.dk, format_case(c) + " dk given o");
  }
  EXPECT_GT(cases, 0);
}

/// Both of them NaN, or close: relative to the second.
bool is_close(double a, double b, double relative) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return a == b || std::abs(a - b) <= relative * std::abs(b);
}

/// The emulator adds in another order on a GPU, on tensor cores: few roundings fall to the other side. In fp32, where nothing
/// hides the sums, they differ by some of its ulps, and so does what cancels in dS.
void expect_same_emulation(const Outputs& here, const Outputs& there, const Rounding& r, const std::string& what) {
  const bool is_fp32 = r.dtype == Dtype::fp32;
  const double relative = is_fp32 ? 16 * r.u : r.u, floor = is_fp32 ? 1 : 1e-3;
  for (const at::Tensor Outputs::*t : {&Outputs::o, &Outputs::lse, &Outputs::dq, &Outputs::dk, &Outputs::dv}) {
    const at::Tensor a = (here.*t).to(at::kDouble), b = (there.*t).to(at::kCPU).to(at::kDouble);
    const at::Tensor finite = a.abs() < kInfinity;
    ASSERT_TRUE(finite.equal(b.abs() < kInfinity)) << what;
    const at::Tensor difference = at::where(finite, a - b, 0.0), size = at::where(finite, a, 0.0);
    const double most = relative * (size.norm().item<double>() + floor * std::sqrt(static_cast<double>(a.numel())));
    EXPECT_LE(difference.norm().item<double>(), most) << what << " " << (t == &Outputs::o ? "o" : "lse or a gradient");
  }
}

/// What both oracles and the emulator say here and there, under every profile and dtype.
void expect_answers_of_the_cpu(const std::string& line) {
  for (const Profile& profile : profiles()) {
    const Conventions conventions = conventions_of(profile);
    for (const char* dtype : {"bf16", "fp16", "fp32"}) {
      const Case c = parse_case(line + " dtype=" + dtype + " seed=5");
      if (c.problem.has_score_options() && conventions.empty_row == Conventions::EmptyRow::nan) continue;
      const Inputs here = make_inputs_and_mask(c, conventions.poison);
      Inputs there = make_inputs(c, conventions.poison, gpu());
      if (here.kept.defined()) there.kept = here.kept.to(there.q.device());
      const std::string of_case = line + " " + dtype + " " + profile.name + " ";
      const Rounding rounding = rounding_of(profile, c.problem);
      const Outputs emulated = emulate(c, here, profile, conventions.empty_row);
      expect_same_emulation(emulated, emulate(c, there, profile, conventions.empty_row), rounding, of_case + "emulator");
      for (const OracleKind kind : {OracleKind::torch, OracleKind::eigen}) {
        const Oracle on_cpu(kind, c, here, profile, conventions.empty_row),
            on_gpu(kind, c, there, profile, conventions.empty_row);
        const Reference a = on_cpu.reference(), b = on_gpu.reference();
        const std::string what = of_case + std::string(name_of(kind)) + " ";
        for (const Expected* x : {&b.o, &b.lse, &b.dq, &b.dk, &b.dv}) ASSERT_TRUE(x->value.is_cuda() && x->variance.is_cuda());
        expect_same(a, b, what);
        if (!rounding.conditional()) continue;
        const auto x = on_cpu.given_output(a, emulated.o), y = on_gpu.given_output(b, emulated.o.to(there.q.device()));
        expect_same(x.dq, y.dq, what + "dq given o");
        expect_same(x.dk, y.dk, what + "dk given o");
      }
    }
  }
}

class OnGpu : public testing::TestWithParam<std::string> {};
class OptionsOnGpu : public testing::TestWithParam<std::string> {};

TEST_P(OnGpu, AnswersAreThoseOfTheCpu) {
  expect_answers_of_the_cpu(GetParam());
}

TEST_P(OptionsOnGpu, AnswersAreThoseOfTheCpu) {
  expect_answers_of_the_cpu(GetParam());
}

INSTANTIATE_TEST_SUITE_P(Scores, OptionsOnGpu, testing::ValuesIn(option_shapes()));
INSTANTIATE_TEST_SUITE_P(Dropout, OptionsOnGpu, testing::ValuesIn(dropout_shapes()));

/// Values that depend on the outputs alone are the same; limits follow from the emulator, whose fp32 sums the GPU adds in
/// another order.
void expect_same_verdict(const Verdict& here, const Verdict& there, const std::string& what) {
  EXPECT_EQ(here.status, there.status) << what << ": " << here.reason << " | " << there.reason;
  ASSERT_EQ(here.errors.size(), there.errors.size()) << what;
  for (const auto& [name, a] : here.errors) {
    const TensorErrors& b = there.errors.at(name);
    EXPECT_EQ(a.elements, b.elements) << what << name;
    EXPECT_EQ(a.bad, b.bad) << what << name;
    EXPECT_EQ(a.first_bad, b.first_bad) << what << name;
    if (a.bad > 0) {
      EXPECT_EQ(a.worst, b.worst) << what << name;
      if (!std::isnan(a.worst_got) || !std::isnan(b.worst_got)) {
        EXPECT_EQ(a.worst_got, b.worst_got) << what << name;
      }
      EXPECT_NEAR(a.worst_expected, b.worst_expected, 1e-9 * (1 + std::abs(a.worst_expected))) << what << name;
    }
    if (a.max_abs != b.max_abs) {
      EXPECT_NEAR(a.max_abs, b.max_abs, 1e-9 * (1 + a.max_abs)) << what << name;
    }
    ASSERT_EQ(a.gates.size(), b.gates.size()) << what << name;
    for (const auto& [gate_name, gate] : a.gates) {
      const Gate& other = b.gates.at(gate_name);
      EXPECT_EQ(gate.verdict, other.verdict) << what << name << " " << gate_name;
      EXPECT_NEAR(gate.value, other.value, 1e-4 * (gate.limit + std::abs(gate.value))) << what << name << " " << gate_name;
      EXPECT_NEAR(gate.limit, other.limit, 0.1 * gate.limit) << what << name << " " << gate_name;
    }
  }
}

TEST_P(OnGpu, VerdictsAreThoseOfTheCpu) {
  for (const Profile& profile : profiles()) {
    const Case c = parse_case(GetParam() + " dtype=bf16 seed=21");
    const Conventions conventions = conventions_of(profile);
    const Inputs here = make_inputs(c, conventions.poison), there = make_inputs(c, conventions.poison, gpu());
    const Judge cpu = make_judge(c, here, profile, conventions, OracleKind::torch);
    const Judge cuda = make_judge(c, there, profile, conventions, OracleKind::torch);
    const Outputs right = emulate(c, here, profile, conventions.empty_row);
    const auto spoiled = [&](at::Tensor Outputs::*tensor, double by) {
      Outputs x = copy_to(right, at::kCPU);
      (x.*tensor).flatten()[0] += by;
      return x;
    };
    const std::pair<const char*, Outputs> all[] = {{"right", right},
                                                   {"o off by 1", spoiled(&Outputs::o, 1)},
                                                   {"dk off by 1", spoiled(&Outputs::dk, 1)},
                                                   {"lse off by 1", spoiled(&Outputs::lse, 1)},
                                                   {"NaN in dq", spoiled(&Outputs::dq, NAN)}};
    for (const auto& [name, outputs] : all)
      for (const Pass pass : {Pass::forward, Pass::backward})
        expect_same_verdict(cpu.judge(outputs, pass), cuda.judge(copy_to(outputs, there.q.device()), pass),
                            GetParam() + " " + profile.name + " " + name + " ");
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, OnGpu, testing::ValuesIn(shapes()));

/// All but the order of sums.
void expect_same_statistics(const ErrorStatistics& a, const ErrorStatistics& b, const std::string& what) {
  EXPECT_EQ(a.elements, b.elements) << what;
  EXPECT_EQ(a.exact_elements, b.exact_elements) << what;
  EXPECT_EQ(a.exact_violations, b.exact_violations) << what;
  EXPECT_EQ(a.worst, b.worst) << what;
  EXPECT_EQ(a.worst_got, b.worst_got) << what;
  EXPECT_EQ(a.worst_expected, b.worst_expected) << what;
  EXPECT_EQ(a.max_abs, b.max_abs) << what;
  for (double ErrorStatistics::*number :
       {&ErrorStatistics::max_z, &ErrorStatistics::rms_z, &ErrorStatistics::rel_l2, &ErrorStatistics::cosine,
        &ErrorStatistics::signal, &ErrorStatistics::allowance, &ErrorStatistics::gain, &ErrorStatistics::gain_error,
        &ErrorStatistics::gain_beside_rounded, &ErrorStatistics::inner_gain, &ErrorStatistics::inner_gain_error,
        &ErrorStatistics::gain_step, &ErrorStatistics::samples})
    EXPECT_NEAR(a.*number, b.*number, 1e-9 * (1e-6 + std::abs(a.*number))) << what;
}

/// Rows about a signal, whose largest |z| is there twice; of the last row nothing has a z.
Expected expected_rows(int64_t tokens, int64_t heads, int64_t channels, at::Tensor& got) {
  const at::Tensor i = at::arange(tokens * heads * channels, at::kDouble).view({tokens, heads, channels});
  Expected x;
  x.value = (i * 0.7).sin();
  x.variance = (i * 1.3).cos().square() * 1e-4 + 1e-6;
  x.allowance = (i * 0.3).sin() * 1e-3;
  x.freedom = at::arange(tokens * heads, at::kDouble).view({tokens, heads}).remainder(5);
  got = x.value + x.variance.sqrt() * (i * 2.9).sin();
  if (tokens == 0) return x;
  for (const int64_t token : {tokens / 3, tokens / 2}) {
    x.variance[token][0][0] = 0.25;
    x.value[token][0][0] = 1;
    got[token][0][0] = 5;
  }
  x.value[tokens - 1].zero_(), x.variance[tokens - 1].zero_(), got[tokens - 1].zero_();
  return x;
}

Expected copy_to(const Expected& x, const at::Device& device) {
  return {x.value.to(device), x.variance.to(device), x.allowance.to(device), x.freedom.to(device)};
}

/// Few rows and many, of few channels and many.
TEST(ErrorsOnGpu, AreThoseOfTheCpu) {
  const std::vector<std::vector<int64_t>> sizes{{5000, 3, 64}, {0, 2, 64}, {90000, 1, 1}, {7, 1, 300}};
  std::vector<at::Tensor> got(sizes.size());
  std::vector<Expected> here, there;
  for (size_t i = 0; i < sizes.size(); ++i) {
    here.push_back(expected_rows(sizes[i][0], sizes[i][1], sizes[i][2], got[i]));
    there.push_back(copy_to(here[i], at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(gpu().index))));
  }
  std::vector<Compared> on_cpu, on_gpu;
  for (size_t i = 0; i < sizes.size(); ++i) {
    on_cpu.push_back({got[i], &here[i]});
    on_gpu.push_back({got[i].to(there[i].value.device()), &there[i]});
  }
  const std::vector<Tolerance> tolerances{{1e-3, 1e-5}, {2e-2, 2e-2}};
  for (const Dtype dtype : {Dtype::bf16, Dtype::fp16, Dtype::fp32}) {
    for (const bool only_outputs_rounded : {false, true}) {
      const auto a = measure_errors(on_cpu, dtype, only_outputs_rounded), b = measure_errors(on_gpu, dtype, only_outputs_rounded);
      for (size_t i = 0; i < a.size(); ++i) expect_same_statistics(a[i], b[i], std::to_string(i));
    }
    const auto a = field_errors(on_cpu, dtype, tolerances), b = field_errors(on_gpu, dtype, tolerances);
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i].max_abs, b[i].max_abs) << i;
      for (size_t k = 0; k < tolerances.size(); ++k) EXPECT_DOUBLE_EQ(a[i].of_tolerance[k], b[i].of_tolerance[k]) << i;
    }
  }
}

/// NaN and infinity in one of the two or both, where a z would be and where 0 must be, in rows and parts that other threads have.
TEST(ErrorsOnGpu, OfWhatIsNotFiniteAreThoseOfTheCpu) {
  const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(gpu().index));
  const double infinity = kInfinity, nan = NAN;
  for (const auto& [token, channel] : std::vector<std::pair<int64_t, int64_t>>{{0, 0}, {17, 40}, {4998, 63}}) {
    for (const auto& [got_there, value_there, variance_there] : std::vector<std::array<double, 3>>{{nan, 1, 1},
                                                                                                   {infinity, 1, 1},
                                                                                                   {nan, nan, 1},
                                                                                                   {infinity, infinity, 1},
                                                                                                   {1, nan, nan},
                                                                                                   {1, 1, nan},
                                                                                                   {1, 0, 0},
                                                                                                   {nan, 0, 0}}) {
      at::Tensor got;
      const Expected here = expected_rows(5000, 3, 64, got);
      got[token][1][channel] = got_there;
      here.value[token][1][channel] = value_there, here.variance[token][1][channel] = variance_there;
      const Expected there = copy_to(here, device);
      const std::string what = std::to_string(got_there) + " for " + std::to_string(value_there) + " at " + std::to_string(token);
      const ErrorStatistics a = measure_errors({{got, &here, 7}}, Dtype::fp16, true).front();
      const ErrorStatistics b = measure_errors({{got.to(device), &there, 7}}, Dtype::fp16, true).front();
      EXPECT_EQ(a.elements, b.elements) << what;
      EXPECT_EQ(a.exact_violations, b.exact_violations) << what;
      EXPECT_EQ(a.nonfinite_mismatches, b.nonfinite_mismatches) << what;
      EXPECT_EQ(a.beyond_limit, b.beyond_limit) << what;
      EXPECT_EQ(a.first_bad, b.first_bad) << what;
      EXPECT_EQ(a.worst, b.worst) << what;
      for (double ErrorStatistics::*number :
           {&ErrorStatistics::max_abs, &ErrorStatistics::max_z, &ErrorStatistics::rms_z, &ErrorStatistics::rel_l2,
            &ErrorStatistics::gain, &ErrorStatistics::gain_beside_rounded, &ErrorStatistics::samples,
            &ErrorStatistics::worst_got})
        EXPECT_PRED3(is_close, a.*number, b.*number, 1e-9) << what;
      const FieldErrors c = field_errors({{got, &here}}, Dtype::fp16, {{1e-3, 1e-5}}).front();
      const FieldErrors d = field_errors({{got.to(device), &there}}, Dtype::fp16, {{1e-3, 1e-5}}).front();
      EXPECT_PRED3(is_close, c.max_abs, d.max_abs, 0) << what;
      EXPECT_PRED3(is_close, c.of_tolerance[0], d.of_tolerance[0], 1e-12) << what;
    }
  }
}

TEST(JudgeOnGpu, AWrongElementFailsTheSameGate) {
  const Case c = parse_case("attention hq=6 hkv=2 lq=129 d=64 dtype=bf16 mask=causal seed=11");
  const Inputs there = make_inputs(c, Conventions::Poison::nan, gpu());
  const Judge judge = make_judge(c, there, flash(), {}, OracleKind::torch);
  Outputs x = emulate(c, there, flash(), Conventions::EmptyRow::zero);
  EXPECT_EQ(judge.judge(x, Pass::forward).status, Status::passed) << judge.judge(x, Pass::forward).reason;
  x.o[40][3][7] += 1;
  const Verdict v = judge.judge(x, Pass::forward);
  EXPECT_EQ(v.status, Status::failed);
  EXPECT_EQ(v.errors.at("o").gates.at("z").verdict, Gate::Verdict::fail);
  EXPECT_EQ(v.errors.at("o").first_bad, (Element{0, 3, 40, 7}));
}

TEST(JudgeOnGpu, OutputsElsewhereAreMalformed) {
  const Case c = parse_case("attention hq=1 lq=16 d=32");
  const Inputs there = make_inputs(c, Conventions::Poison::nan, gpu());
  const Judge judge = make_judge(c, there, flash(), {}, OracleKind::torch);
  const Verdict v = judge.judge(copy_to(emulate(c, there, flash(), Conventions::EmptyRow::zero), at::kCPU), Pass::forward);
  EXPECT_TRUE(v.malformed);
  EXPECT_NE(v.reason.find("o is on cpu, expected on cuda:0"), std::string::npos) << v.reason;
}

double seconds(const std::function<void()>& work) {
  cudaDeviceSynchronize();
  const auto start = std::chrono::steady_clock::now();
  work();
  cudaDeviceSynchronize();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

constexpr double kGiB = 1 << 30;

/// Most bytes that tensors took at once while `work` ran, beyond those that were there before.
double peak_gib(const std::function<void()>& work) {
  namespace caching = c10::cuda::CUDACachingAllocator;
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const auto index = static_cast<c10::DeviceIndex>(gpu().index);
  caching::resetPeakStats(index);
  const int64_t before = caching::getDeviceStats(index).allocated_bytes[kAll].current;
  work();
  return static_cast<double>(caching::getDeviceStats(index).allocated_bytes[kAll].peak - before) / kGiB;
}

TEST(JudgeOnGpu, ALongCaseIsJudgedInBoundedMemory) {
  const Case c = parse_case("attention hq=16 lq=16384 d=128 dtype=bf16 mask=causal");
  const Inputs there = make_inputs(c, Conventions::Poison::nan, gpu());
  Oracle(OracleKind::torch, parse_case("attention hq=1 lq=64 d=128 mask=causal"),
         make_inputs(parse_case("attention hq=1 lq=64 d=128 mask=causal"), Conventions::Poison::nan, gpu()), flash(),
         Conventions::EmptyRow::zero)
      .reference();  // loads libraries
  double time_s = 0;
  const double gib = peak_gib(
      [&] { time_s = seconds([&] { Oracle(OracleKind::torch, c, there, flash(), Conventions::EmptyRow::zero).reference(); }); });
  printf("reference of 16 causal heads of 16384 tokens: %.2f s, %.2f GiB beyond the inputs\n", time_s, gib);
  EXPECT_GT(gib, 2);  // values and variances alone
  EXPECT_LT(gib, 8);
  EXPECT_LT(time_s, 5) << "on an H200 it is 1.2 s";
}

TEST(JudgeOnGpu, TimesAreShown) {
  for (const char* line :
       {"attention hq=16 b=32 lq=512 d=128 dtype=bf16 mask=causal", "attention hq=16 lq=16384 d=128 mask=causal",
        "attention hq=16 lens=17+512+64+129+257+384+100+512+17+31 d=64 mask=causal"}) {
    const Case c = parse_case(line);
    const Inputs there = make_inputs(c, Conventions::Poison::nan, gpu());
    const double reference_s =
        seconds([&] { Oracle(OracleKind::torch, c, there, flash(), Conventions::EmptyRow::zero).reference(); });
    std::unique_ptr<Judge> judge;
    const double judge_s =
        seconds([&] { judge = std::make_unique<Judge>(make_judge(c, there, flash(), {}, OracleKind::torch)); });
    const Outputs outputs = emulate(c, there, flash(), Conventions::EmptyRow::zero);
    Verdict forward, backward;
    const double forward_s = seconds([&] { forward = judge->judge(outputs, Pass::forward); });
    const double backward_s = seconds([&] { backward = judge->judge(outputs, Pass::backward); });
    printf("%s: reference %.2f s, judge made in %.2f s; forward judged in %.3f s, backward in %.3f s\n", line, reference_s,
           judge_s, forward_s, backward_s);
    EXPECT_EQ(forward.status, Status::passed) << forward.reason;
    EXPECT_EQ(backward.status, Status::passed) << backward.reason;
  }
}

}  // namespace
}  // namespace attnbench
