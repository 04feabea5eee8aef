// What the worker does with a GPU: finds it, watches its memory, notices that its context is gone.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/ones.h>
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/errors.hpp"
#include "harness/worker/cuda_device.hpp"
#include "harness/worker/memory.hpp"
#include "harness/worker/sealed_inputs.hpp"

namespace attnbench {
namespace {

const Device& gpu() {
  static const Device device = [] {
    const Device found = find_cuda_device(0);
    watch_cuda_memory();
    return found;
  }();
  return device;
}

at::TensorOptions on_gpu(at::ScalarType dtype) {
  return at::TensorOptions().dtype(dtype).device(at::kCUDA, gpu().index);
}

TEST(CudaDevice, IsDescribedAndOthersAreRefused) {
  EXPECT_EQ(gpu().kind, "cuda");
  EXPECT_GE(gpu().sm.value(), 75);
  EXPECT_FALSE(gpu().name.empty());
  EXPECT_THROW(find_cuda_device(99), UsageError);
  EXPECT_GT(available_bytes(gpu()), int64_t(1) << 28);
}

TEST(CudaMemory, CheckedBlocksStartAsNan) {
  const MemoryScope checked(MemoryMode::checked);
  EXPECT_TRUE(at::isnan(at::empty({1000}, on_gpu(at::kHalf))).all().item<bool>());
}

TEST(CudaMemory, AWriteOutsideABlockIsSeenOnce) {
  gpu();
  const MemoryScope checked(MemoryMode::checked);
  take_overruns();
  const at::Tensor t = at::ones({100}, on_gpu(at::kFloat));
  EXPECT_TRUE(take_overruns().empty());
  ASSERT_EQ(cudaMemset(static_cast<char*>(t.data_ptr()) + t.nbytes(), 0, 4), cudaSuccess);
  const std::vector<Overrun> past = take_overruns();
  ASSERT_EQ(past.size(), 1u);
  EXPECT_TRUE(past[0].past_the_end);
  EXPECT_EQ(past[0].bytes, 4u);
  EXPECT_EQ(past[0].block, t.data_ptr());
  EXPECT_TRUE(take_overruns().empty());
  ASSERT_EQ(cudaMemset(static_cast<char*>(t.data_ptr()) - 8, 0, 8), cudaSuccess);
  const std::vector<Overrun> before = take_overruns();
  ASSERT_EQ(before.size(), 1u);
  EXPECT_FALSE(before[0].past_the_end);
}

TEST(CudaMemory, AWriteOutsideOneOfManyFreedBlocksIsSeen) {
  gpu();
  const MemoryScope checked(MemoryMode::checked);
  take_overruns();
  for (int i = 0; i < 5000; ++i) {
    const at::Tensor t = at::empty({101}, on_gpu(at::kByte));
    if (i == 17 || i == 4500) {
      ASSERT_EQ(cudaMemset(static_cast<char*>(t.data_ptr()) + t.nbytes() + 1000, i % 100, 3), cudaSuccess);
    }
  }
  const std::vector<Overrun> overruns = take_overruns();
  ASSERT_EQ(overruns.size(), 2u);
  for (const Overrun& overrun : overruns) {
    EXPECT_TRUE(overrun.past_the_end);
    EXPECT_EQ(overrun.bytes, 3u);
    EXPECT_EQ(overrun.block_bytes, 101u);
  }
}

TEST(CudaMemory, CountsBytesOfTheGpu) {
  gpu();
  const MemoryScope checked(MemoryMode::checked);
  reset_peak_bytes();
  const int64_t before = current_bytes();
  { const at::Tensor t = at::empty({1 << 20}, on_gpu(at::kFloat)); }
  const at::Tensor host = at::empty({1 << 24}, at::kFloat);
  EXPECT_EQ(peak_bytes() - before, int64_t(4) << 20);
  EXPECT_EQ(current_bytes(), before);
}

TEST(CudaInputs, EqualThoseOfTheCpuToTheLastBit) {
  for (const char* line : {"attention lens=5+0+33 klens=7+2+33 hq=4 hkv=2 d=64 mask=causal align=top_left dtype=fp16",
                           "attention lens=65+17 hq=2 d=128 layout=padded pad=holes fill=mean_offset",
                           "attention lq=65 hq=4 hkv=2 d=64 strides=stride0 dtype=fp32 seed=3"}) {
    const Case c = parse_case(line, "test");
    const SealedInputs cpu(c, Conventions::Poison::nan, {"cpu", 0, std::nullopt, ""}), cuda(c, Conventions::Poison::nan, gpu());
    const NamedTensors a = named_tensors(cpu.get()), b = named_tensors(cuda.get());
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      ASSERT_TRUE(b[i].second.is_cuda());
      EXPECT_EQ(a[i].second.strides(), b[i].second.strides()) << line << " " << a[i].first;
      const auto bytes = [](const at::Tensor& t) { return t.to(at::kCPU).contiguous().flatten().view(at::kByte); };
      EXPECT_TRUE(bytes(a[i].second).equal(bytes(b[i].second))) << line << " " << a[i].first;
    }
  }
}

TEST(CudaInputs, AChangedByteIsSeenAndRestored) {
  SealedInputs inputs(parse_case("attention lq=65 hq=2 d=64", "test"), Conventions::Poison::nan, gpu());
  EXPECT_EQ(inputs.overwritten(), "");
  ASSERT_EQ(cudaMemset(static_cast<char*>(inputs.get().k.data_ptr()) + 1001, 0x55, 1), cudaSuccess);
  EXPECT_EQ(inputs.overwritten(), "k");
  inputs.restore();
  EXPECT_EQ(inputs.overwritten(), "");
}

TEST(CudaInputs, NegatedTwiceAreTheSameBits) {
  const Case c = parse_case("attention lens=65+17 hq=2 d=64 layout=padded", "test");
  SealedInputs inputs(c, Conventions::Poison::nan, gpu());
  ASSERT_TRUE(at::isnan(inputs.get().v).any().item<bool>()) << "the sign of a NaN is what arithmetic loses";
  const at::Tensor before = inputs.get().v.clone();
  {
    const SealedInputs::Negated negated(inputs, &Inputs::v);
    const at::Tensor opposite = inputs.get().v + before;
    EXPECT_TRUE(((opposite == 0) | at::isnan(opposite)).all().item<bool>());
  }
  EXPECT_EQ(inputs.overwritten(), "");
}

TEST(CudaContextDeathTest, AFailedOneIsNoticed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto fail = [] {
    check_context(gpu());
    const at::Tensor index = at::arange(5, 6, on_gpu(at::kLong));
    at::index_select(at::ones({2}, on_gpu(at::kFloat)), 0, index);  // out of range: a device-side assertion
    try {
      check_context(gpu());
    } catch (const CudaContextFailed& e) {
      fprintf(stderr, "%s\n", e.what());
      _exit(7);
    }
    _exit(0);
  };
  EXPECT_EXIT(fail(), testing::ExitedWithCode(7), "the CUDA context failed");
}

}  // namespace
}  // namespace attnbench
