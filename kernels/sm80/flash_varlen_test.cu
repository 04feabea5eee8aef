// The CUDA kernels against the CPU kernels in float32 on the same rounded inputs: two implementations without common code.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/sm80/test_comparison.cuh"

namespace attnbench::flash_varlen {
namespace {

template <class T>
void expect_equal(const Setting& setting, double limit) {
  const Comparison<T> comparison(setting);
  const Results expected = comparison.on_cpu();
  for (const int shared_memory_bytes : {0, kSmallestSharedMemory}) {
    const Results got = comparison.on_gpu(shared_memory_bytes);
    const std::string what = "d=" + std::to_string(setting.d) + " hkv=" + std::to_string(setting.hkv) + " window " +
                             std::to_string(setting.left) + ":" + std::to_string(setting.right) + " shared memory limit " +
                             std::to_string(shared_memory_bytes);
    EXPECT_LE(largest_difference(got.lse, expected.lse), 2e-5) << what;
    EXPECT_LE(relative_l2(got.o, expected.o), limit) << "o " << what;
    EXPECT_LE(relative_l2(got.dq, expected.dq), limit) << "dq " << what;
    EXPECT_LE(relative_l2(got.dk, expected.dk), limit) << "dk " << what;
    EXPECT_LE(relative_l2(got.dv, expected.dv), limit) << "dv " << what;
  }
}

TEST(LargestDifference, IsNanWhereOneElementWasNotWritten) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(largest_difference({1, 2, 3}, {1, 2, 5}), 2);
  EXPECT_TRUE(std::isnan(largest_difference({1, nan, 3}, {1, 2, 3.5})));
  EXPECT_TRUE(std::isnan(largest_difference({1, 2}, {1, 2, 3})));
}

TEST(FlashVarlenSm80, EqualsTheCpuKernelsInFloat32) {
  const std::vector<Lengths> all = {{{1, 63, 64, 65, 0, 127, 128, 129, 333}, {1, 63, 64, 65, 0, 127, 128, 129, 333}},
                                    {{5, 300, 64, 0, 129, 200}, {300, 5, 65, 70, 0, 257}}};
  for (const Lengths& lengths : all)
    for (const int d : {64, 128})
      for (const int hkv : {4, 2, 1})
        for (const auto& [left, right, bottom_right] : {std::tuple{-1, -1, true}, {-1, 0, true}, {-1, 0, false}, {40, 8, true}}) {
          const Setting setting{lengths, 4, hkv, d, left, right, bottom_right};
          expect_equal<sm80::Bfloat>(setting, 4e-3);
          expect_equal<sm80::Half>(setting, 6e-4);
        }
}

TEST(FlashVarlenSm80, RefusesWhatItDoesNotTake) {
  const CudaLaunch launch{.max_q = 8, .max_k = 8, .total_q = 8};
  Forward f{.shape = {.sequences = 1, .hq = 2, .hkv = 1, .d = 80, .scale = 1.f}};
  EXPECT_THROW(forward_cuda(f, launch), std::invalid_argument);
  f.shape.d = 64;
  f.shape.type = Type::fp32;
  EXPECT_THROW(forward_cuda(f, launch), std::invalid_argument);
  f.shape.type = Type::bf16;
  f.q.token_stride = 65;
  EXPECT_THROW(forward_cuda(f, launch), std::invalid_argument);
  CudaLaunch narrow = launch;
  narrow.shared_memory_bytes = 16 * 1024;
  f.q.token_stride = 128;
  EXPECT_THROW(forward_cuda(f, narrow), std::invalid_argument);
  f.shape.scale = -1;
  EXPECT_THROW(forward_cuda(f, launch), std::invalid_argument);
  EXPECT_THROW(backward_cuda({.shape = f.shape}, launch, nullptr), std::invalid_argument);
  f.shape.scale = 1;
  f.shape.sequences = 65536;
  EXPECT_THROW(forward_cuda(f, launch), std::invalid_argument);
}

}  // namespace
}  // namespace attnbench::flash_varlen
