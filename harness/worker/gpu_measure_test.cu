// Measuring on a real GPU, with kernels whose time is known. Prints what it measured, for people who doubt it.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <thread>

#include "harness/worker/cuda_device.hpp"
#include "harness/worker/gpu_environment.hpp"
#include "harness/worker/gpu_properties.hpp"
#include "harness/worker/measure.hpp"
#include "harness/worker/statistics.hpp"

namespace attnbench {
namespace {

/// Start and end of a kernel belong to its time, and come on top of what it was told to take: 4.4 us on one H200, less than
/// 4 us on another.
constexpr double kLaunch_us = 6;

const Device& gpu() {
  static const Device device = find_cuda_device(0);
  return device;
}

__device__ uint64_t global_ns() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
  return ns;
}

__global__ void spin(uint64_t ns) {
  const uint64_t end = global_ns() + ns;
  while (global_ns() < end) {
  }
}

/// Every thread adds up its share; nothing is written unless the sum is a value that no memory here holds.
__global__ void read_all(const uint4* from, size_t count, unsigned* out) {
  unsigned sum = 0;
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) {
    const uint4 value = from[i];
    sum |= value.x | value.y | value.z | value.w;
  }
  if (sum != 0) *out = sum;
}

void launch_spin(double us) {
  spin<<<1, 1>>>(uint64_t(us * 1e3));
}

struct Medians {
  double us, sm_mhz;
  int held;
};

Medians medians_of(Sampler& sampler, const std::function<void()>& call, bool hold = true, int samples = 31) {
  std::vector<double> us, clocks;
  int held = 0;
  for (int i = 0; i < samples; ++i) {
    const Sample sample = sampler.sample(call, 1, hold);
    us.push_back(sample.us);
    if (!std::isnan(sample.sm_mhz)) clocks.push_back(sample.sm_mhz);
    held += sample.held;
  }
  const auto [least, most] = std::minmax_element(us.begin(), us.end());
  std::printf("    median %.2f us (%.2f to %.2f), %d of %d held, %zu with a clock, median %.0f MHz\n", median(us), *least, *most,
              held, samples, clocks.size(), clocks.empty() ? 0 : median(clocks));
  return {median(us), clocks.empty() ? std::numeric_limits<double>::quiet_NaN() : median(clocks), held};
}

class GpuMeasure : public testing::Test {
 protected:
  void SetUp() override { sampler_ = make_gpu_sampler(gpu().index, nullptr); }
  void TearDown() override { EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess); }

  std::unique_ptr<Sampler> sampler_;
};

TEST_F(GpuMeasure, KernelsOfAKnownTime) {
  std::puts("  a kernel that does nothing:");
  const Medians nothing = medians_of(*sampler_, [] { launch_spin(0); });
  EXPECT_LT(nothing.us, kLaunch_us);
  for (const double us : {100.0, 1000.0}) {
    std::printf("  a kernel that spins for %.0f us:\n", us);
    const Medians measured = medians_of(*sampler_, [us] { launch_spin(us); });
    EXPECT_NEAR(measured.us, us, 0.02 * us + kLaunch_us);
    EXPECT_NEAR(measured.us - nothing.us, us, 0.02 * us) << "without start and end";
    EXPECT_EQ(measured.held, 31);
  }
}

TEST_F(GpuMeasure, GapsBetweenLaunchesAreNotTimed) {
  const auto two_kernels = [] {
    launch_spin(100);
    std::this_thread::sleep_for(std::chrono::microseconds(500));
    launch_spin(100);
  };
  std::puts("  two kernels of 100 us, launched 500 us apart, held and not held:");
  EXPECT_NEAR(medians_of(*sampler_, two_kernels).us, 200, 4 + 2 * kLaunch_us);
  EXPECT_GE(medians_of(*sampler_, two_kernels, false).us, 580) << "and the test can fail";
}

TEST_F(GpuMeasure, AnOperationThatWaitsForTheDeviceIsMeasuredWithoutTheHold) {
  const auto waits = [] {
    launch_spin(200);
    if (cudaDeviceSynchronize() != cudaSuccess) throw std::runtime_error("the kernel failed");
  };
  const Sample held = sampler_->sample(waits, 1, true);
  EXPECT_TRUE(held.hold_expired);
  EXPECT_FALSE(held.held);
  MeasureOptions options;
  options.time_budget_s = 1;
  const auto measured = measure({{"waits", waits, [] {}}}, options, {{.name = "sustained"}}, *sampler_);
  ASSERT_EQ(measured[0].error, "");
  const WindowTime& time = measured[0].times[0].second;
  std::printf("  waits inside: median %.2f us, p95 %.2f us, %ld of %ld samples without hold\n", time.median_us, time.p95_us,
              long(time.gpu->samples_without_hold), long(time.n));
  EXPECT_EQ(time.gpu->samples_without_hold, time.n);
  EXPECT_GE(time.median_us, 200);
  EXPECT_LT(time.median_us, 400);
}

TEST_F(GpuMeasure, AnOperationThatThrowsHasAnErrorAndTheNextATime) {
  const auto throws = [] {
    launch_spin(100);
    throw std::runtime_error("no kernel image");
  };
  EXPECT_THROW(sampler_->sample(throws, 1, true), std::runtime_error);
  EXPECT_EQ(cudaStreamQuery(nullptr), cudaSuccess) << "nothing is left running";
  MeasureOptions options;
  options.time_budget_s = 0.5;
  const std::vector<Operation> operations = {{"throws", throws, [] {}}, {"fine", [] { launch_spin(100); }, [] {}}};
  const auto measured = measure(operations, options, {{.name = "sustained"}}, *sampler_);
  EXPECT_EQ(measured[0].error, "no kernel image");
  EXPECT_TRUE(measured[0].times.empty());
  ASSERT_EQ(measured[1].error, "");
  EXPECT_NEAR(measured[1].times[0].second.median_us, 100, 2 + kLaunch_us);
}

TEST_F(GpuMeasure, TheFirstReaderFindsNothingInTheL2Cache) {
  const size_t bytes = gpu_properties(gpu().index).l2_bytes / 4;
  const int multiprocessors = gpu_properties(gpu().index).multiprocessors;
  uint4* data = nullptr;
  unsigned* out = nullptr;
  ASSERT_EQ(cudaMalloc(&data, bytes), cudaSuccess);
  ASSERT_EQ(cudaMalloc(&out, sizeof *out), cudaSuccess);
  ASSERT_EQ(cudaMemset(data, 0, bytes), cudaSuccess);
  const auto read = [&] { read_all<<<4 * multiprocessors, 512>>>(data, bytes / sizeof(uint4), out); };
  std::printf("  reading %zu MiB once, twice, and not at all:\n", bytes >> 20);
  const double once = medians_of(*sampler_, read).us;
  const double twice = medians_of(*sampler_, [&] { read(), read(); }).us;
  const double nothing = medians_of(*sampler_, [] { launch_spin(0); }).us;
  std::printf("  from memory %.2f us, from the L2 cache %.2f us\n", once - nothing, twice - once);
  EXPECT_LT(twice - once, 0.85 * (once - nothing));
  cudaFree(out);
  cudaFree(data);
}

TEST_F(GpuMeasure, TheClockOfTheSamplesIsThatOfTheDriver) {
  for (int i = 0; i < 200; ++i) sampler_->sample([] { launch_spin(1000); }, 1, true);
  sampler_->take_readings();
  const Medians measured = medians_of(
      *sampler_, [] { launch_spin(2000); }, true, 200);
  const Readings readings = sampler_->take_readings();
  if (readings.sm_mhz.empty()) GTEST_SKIP() << "the driver's library (NVML) is not here, or does not tell the clock";
  std::printf("  %zu readings: SM clock %.0f MHz, power %.0f W, %.0f C, %zu throttle reasons\n", readings.sm_mhz.size(),
              median(readings.sm_mhz), readings.power_w.empty() ? NAN : median(readings.power_w),
              readings.temperature_c.empty() ? NAN : median(readings.temperature_c), readings.throttle.size());
  EXPECT_NEAR(measured.sm_mhz / median(readings.sm_mhz), 1, 0.1);
}

TEST(GpuMeasureOnTheDevice, CooledIdlesAndSustainedDoesNot) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> gaps_s;
  Clock::time_point announced;
  const auto call = [&](double us) {
    gaps_s.push_back(std::chrono::duration<double>(Clock::now() - announced).count());
    announced = Clock::now();
    launch_spin(us);
  };
  const auto announce = [&] { announced = Clock::now(); };
  const std::vector<Operation> operations = {{"500 us", [&] { call(500); }, announce},
                                             {"200 us, another window", [&] { call(200); }, announce, false},
                                             {"20 us", [&] { call(20); }, announce}};
  MeasureOptions options;
  options.time_budget_s = 3;
  const auto start = Clock::now();
  const auto measured = measure(operations, options, gpu());
  std::printf("  %.2f s in all\n", std::chrono::duration<double>(Clock::now() - start).count());
  for (size_t i = 0; i < measured.size(); ++i) {
    ASSERT_EQ(measured[i].error, "");
    for (const auto& [regime, time] : measured[i].times)
      std::printf("  %-22s %-9s median %.2f us [%.2f, %.2f], n %ld in %zu rounds, %ld calls a sample, %.0f MHz, %.0f W, %s\n",
                  operations[i].id.c_str(), regime.c_str(), time.median_us, time.ci95_us[0], time.ci95_us[1], long(time.n),
                  time.rounds.size(), long(time.calls_per_sample), time.gpu->sm_mhz.value_or(NAN),
                  time.gpu->power_w.value_or(NAN), time.converged ? "converged" : "unconverged");
  }
  const auto idles = std::count_if(gaps_s.begin(), gaps_s.end(), [](double gap_s) { return gap_s >= 0.2; });
  ASSERT_EQ(measured[0].times.size(), 2u);
  EXPECT_EQ(measured[1].times.size(), 1u);
  EXPECT_EQ(size_t(idles), measured[0].times[0].second.rounds.size() + measured[2].times[0].second.rounds.size());
  EXPECT_NEAR(measured[0].times[0].second.median_us, 500, 10 + kLaunch_us);
  EXPECT_NEAR(measured[2].times[1].second.median_us, 20, 2 + kLaunch_us);
  EXPECT_GE(measured[2].times[1].second.calls_per_sample, 2);
}

TEST(GpuEnvironment, SaysWhatTheNumbersDependOn) {
  const auto found = gpu_environment(gpu());
  std::printf("%s\n", found.dump(2).c_str());
  for (const char* key : {"name", "l2_bytes", "cuda_runtime", "cuda_driver", "cudnn", "tf32"})
    EXPECT_FALSE(found.at(key).is_null()) << key;
  if (!found.contains("driver")) GTEST_SKIP() << "the driver's library (NVML) is not here";
  for (const char* key : {"uuid_hash", "driver", "vbios", "power_limit_w", "temperature_c", "throttle", "pstate"})
    EXPECT_FALSE(found.at(key).is_null()) << key;
  EXPECT_EQ(found.at("uuid_hash").get<std::string>().size(), 16u) << "not the UUID itself";
}

}  // namespace
}  // namespace attnbench
