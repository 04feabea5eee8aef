// What the worker does with a GPU: finds it, watches its memory, counts its time, notices that its context is gone.
#include <chrono>
#include <thread>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/errors.hpp"
#include "harness/worker/cuda_device.hpp"
#include "harness/worker/guard_bands.hpp"
#include "harness/worker/memory.hpp"
#include "harness/worker/row_words.hpp"
#include "harness/worker/sealed_inputs.hpp"
#include "harness/worker/spending.hpp"

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

TEST(CudaMemory, FiniteBlocksStartAsLargeNumbers) {
  gpu();
  const MemoryScope finite(MemoryMode::finite);
  for (const auto dtype : {at::kBFloat16, at::kHalf, at::kFloat, at::kDouble}) {
    const at::Tensor t = at::empty({1001}, on_gpu(dtype)).to(at::kDouble);
    EXPECT_GT(t.min().item<double>(), 5e4);
    EXPECT_LT(t.max().item<double>(), INFINITY);
  }
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

TEST(CudaMemory, EveryByteOfABlockIsFilledAndTheOnesAroundItAreWatched) {
  gpu();
  const MemoryScope checked(MemoryMode::checked);
  take_overruns();
  constexpr auto kBand = static_cast<int64_t>(kGuardBytes);
  for (const int64_t bytes : {1, 2, 15, 16, 17, 101, 4096, 70001}) {
    const at::Tensor t = at::empty({bytes}, on_gpu(at::kByte));
    EXPECT_TRUE((t == 0xff).all().item<bool>()) << bytes;
    for (const int64_t at : {-kBand, -kBand + 7, int64_t(-1), bytes, bytes + 1, bytes + kBand / 2 + 3, bytes + kBand - 1}) {
      ASSERT_EQ(cudaMemset(static_cast<char*>(t.data_ptr()) + at, 0x55, 1), cudaSuccess);
      const std::vector<Overrun> overruns = take_overruns();
      ASSERT_EQ(overruns.size(), 1u) << bytes << " bytes, byte " << at;
      EXPECT_EQ(overruns[0].block, t.data_ptr());
      EXPECT_EQ(overruns[0].bytes, 1u);
      EXPECT_EQ(overruns[0].past_the_end, at > 0);
    }
    ASSERT_EQ(cudaMemset(static_cast<char*>(t.data_ptr()) - 100, 0, size_t(bytes) + 203), cudaSuccess);
    const std::vector<Overrun> around = take_overruns();
    ASSERT_EQ(around.size(), 2u);
    EXPECT_EQ(around[0].bytes, 100u);
    EXPECT_EQ(around[1].bytes, 103u);
    EXPECT_TRUE((t == 0).all().item<bool>()) << "mending leaves the block as it is";
    EXPECT_TRUE(take_overruns().empty());
  }
}

TEST(CudaMemory, OverrunsOfManyBlocksAreToldApart) {
  gpu();
  const MemoryScope checked(MemoryMode::checked);
  take_overruns();
  std::vector<at::Tensor> blocks;
  for (int64_t i = 0; i < 300; ++i) blocks.push_back(at::empty({i + 1}, on_gpu(at::kByte)));
  for (const size_t i : {0, 63, 64, 65, 299})
    ASSERT_EQ(cudaMemset(static_cast<char*>(blocks[i].data_ptr()) + blocks[i].nbytes(), 0, i + 1), cudaSuccess);
  std::vector<size_t> sizes;
  for (const Overrun& overrun : take_overruns()) {
    EXPECT_EQ(overrun.bytes, overrun.block_bytes);
    sizes.push_back(overrun.block_bytes);
  }
  EXPECT_THAT(sizes, testing::UnorderedElementsAre(1, 64, 65, 66, 300));
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
    const SealedInputs::Signs negated(inputs, {true, true}, {});
    const at::Tensor opposite = inputs.get().v + before;
    EXPECT_TRUE(((opposite == 0) | at::isnan(opposite)).all().item<bool>());
  }
  EXPECT_EQ(inputs.overwritten(), "");
}

TEST(CudaWords, AreSummedAndComparedAsThoseOfTheCpu) {
  std::vector<at::Tensor> here, there;
  for (int repeats = 0; repeats < 2; ++repeats)  // more than go into one launch
    for (const int64_t bytes : {0, 1, 7, 8, 2049, (32 << 10) - 1, 32 << 10, (32 << 10) + 3, 5 << 20}) {
      here.push_back(at::arange(bytes).mul_(37).bitwise_and_(0xff).to(at::kByte));
      there.push_back(here.back().to(on_gpu(at::kByte)));
    }
  std::vector<Words> words_here, words_there;
  for (size_t i = 0; i < here.size(); ++i) {
    words_here.push_back({here[i].data_ptr(), here[i].numel()});
    words_there.push_back({there[i].data_ptr(), there[i].numel()});
  }
  const at::Device device = there.front().device();
  EXPECT_EQ(fingerprints(device, words_there), fingerprints(at::kCPU, words_here));
  for (const int64_t size : {1, 2, 4, 8}) {
    std::vector<ElementPair> pairs;
    std::vector<at::Tensor> copies;
    std::vector<bool> expected;
    for (const at::Tensor& t : there) {
      copies.push_back(t.clone());
      const bool differs = t.numel() >= size && copies.size() % 2 == 0;
      if (differs) copies.back()[t.numel() / size * size - 1].bitwise_xor_(1);
      expected.push_back(!differs);
      pairs.push_back({t.data_ptr(), copies.back().data_ptr(), t.numel() / size, size, false});
    }
    EXPECT_EQ(same_elements(device, pairs), expected) << size;
  }
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

/// Of work that takes the GPU long and the host not, and of some that does the opposite.
TEST(SpendingOnGpu, SecondsAreTheStreams) {
  count_time_of(gpu());
  const at::Tensor x = at::ones({4096, 4096}, on_gpu(at::kFloat));
  const auto work = [&] {
    for (int i = 0; i < 20; ++i) x.matmul(x);
  };
  work();
  wait_for_device();
  const auto start = std::chrono::steady_clock::now();
  work();
  wait_for_device();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  take_spending();
  {
    const SpendingScope outer(Expense::gates);
    const SpendingScope oracle(Expense::oracle);
    work();
  }
  {
    const SpendingScope emulator(Expense::emulator);
    x.add(1);
  }
  const Spending queued = take_spending();
  EXPECT_GT(queued.items.at("oracle").seconds, seconds / 2);
  EXPECT_LT(queued.items.at("oracle").seconds, seconds * 2);
  EXPECT_LT(queued.items.at("emulator").seconds, seconds / 10);
  EXPECT_LT(queued.items.at("gates").seconds, seconds / 10);
  {
    const SpendingScope oracle(Expense::oracle);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_GE(take_spending().items.at("oracle").seconds, 0.019);
  count_time_of({"cpu", 0, {}, ""});
}

/// Nothing that was queued before a call is counted as the call's, or hides its launches.
TEST(SpendingOnGpu, ACallStartsWhereTheDeviceIsIdle) {
  count_time_of(gpu());
  const at::Tensor x = at::ones({4096, 4096}, on_gpu(at::kFloat));
  take_spending();
  {
    const SpendingScope oracle(Expense::oracle);
    for (int i = 0; i < 20; ++i) x.matmul(x);
  }
  {
    const WholeCall whole;
    const SpendingScope calls(Expense::calls);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  const Spending spent = take_spending();
  EXPECT_GE(spent.fastest_call_s, 0.0049);
  EXPECT_LT(spent.fastest_call_s, 0.0100);
  EXPECT_GT(spent.items.at("oracle").seconds, spent.items.at("calls").seconds);
  count_time_of({"cpu", 0, {}, ""});
}

}  // namespace
}  // namespace attnbench
