#include "harness/worker/memory.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>

namespace attnbench {
namespace {

char* bytes_of_tensor(const at::Tensor& t) {
  return static_cast<char*>(t.data_ptr());
}

TEST(Memory, NewBlocksHoldNanInEveryFloatType) {
  const MemoryScope checked(MemoryMode::checked);
  for (auto type : {at::kBFloat16, at::kHalf, at::kFloat, at::kDouble}) {
    const at::Tensor t = at::empty({5}, type);
    EXPECT_TRUE(std::isnan(t[4].item<double>())) << type;
  }
}

TEST(Memory, ALargeBlockIsFilledToItsEnd) {
  const MemoryScope checked(MemoryMode::checked);
  const at::Tensor t = at::empty({(5 << 20) + 3}, at::kByte);
  const char* const bytes = bytes_of_tensor(t);
  EXPECT_EQ(std::count(bytes, bytes + t.nbytes(), '\xff'), t.numel());
}

TEST(Memory, AlignmentStays) {
  const MemoryScope checked(MemoryMode::checked);
  for (int64_t n : {1, 3, 64, 1000}) EXPECT_EQ(reinterpret_cast<uintptr_t>(at::empty({n}, at::kByte).data_ptr()) % 64, 0u) << n;
}

TEST(Memory, AWriteOutsideIsSeenOnDemandOnceAndWithItsSize) {
  const MemoryScope checked(MemoryMode::checked);
  take_overruns();
  const at::Tensor t = at::empty({3}, at::kFloat);
  std::memset(bytes_of_tensor(t), 0, 12);
  EXPECT_TRUE(take_overruns().empty()) << "the block itself may be written";
  std::memset(bytes_of_tensor(t) + 12, 0, 8);
  std::vector<Overrun> overruns = take_overruns();
  ASSERT_EQ(overruns.size(), 1u);
  EXPECT_EQ(overruns[0].block, t.data_ptr());
  EXPECT_EQ(overruns[0].block_bytes, 12u);
  EXPECT_TRUE(overruns[0].past_the_end);
  EXPECT_EQ(overruns[0].bytes, 8u);
  EXPECT_TRUE(take_overruns().empty()) << "reported once";

  bytes_of_tensor(t)[-1] = 0;
  overruns = take_overruns();
  ASSERT_EQ(overruns.size(), 1u);
  EXPECT_FALSE(overruns[0].past_the_end);
}

TEST(Memory, FiniteBlocksStartAsLargeNumbers) {
  const MemoryScope finite(MemoryMode::finite);
  take_overruns();
  for (const auto dtype : {at::kBFloat16, at::kHalf, at::kFloat, at::kDouble}) {
    const at::Tensor t = at::empty({100}, dtype).to(at::kDouble);
    EXPECT_GT(t.min().item<double>(), 5e4);
    EXPECT_LT(t.max().item<double>(), INFINITY);
  }
  const at::Tensor t = at::empty({4}, at::kFloat);
  bytes_of_tensor(t)[16] = 1;
  EXPECT_EQ(take_overruns().size(), 1u) << "guarded, too";
}

TEST(Memory, AWriteOutsideAFreedBlockIsSeen) {
  const MemoryScope checked(MemoryMode::checked);
  take_overruns();
  {
    const at::Tensor t = at::empty({7}, at::kByte);
    bytes_of_tensor(t)[7 + 200] = 1;
  }
  ASSERT_EQ(take_overruns().size(), 1u);
}

TEST(Memory, ANanWrittenOutsideIsSeen) {
  const MemoryScope checked(MemoryMode::checked);
  take_overruns();
  const at::Tensor t = at::empty({4}, at::kFloat);
  const float nan = std::nanf("");
  std::memcpy(bytes_of_tensor(t) + 16, &nan, sizeof nan);
  EXPECT_EQ(take_overruns().size(), 1u);
}

TEST(Memory, CountsCurrentAndPeakBytes) {
  const MemoryScope checked(MemoryMode::checked);
  const int64_t before = current_bytes();
  reset_peak_bytes();
  const at::Tensor kept = at::empty({1000}, at::kFloat);
  { const at::Tensor dropped = at::empty({500}, at::kFloat); }
  EXPECT_EQ(current_bytes() - before, 4000);
  EXPECT_EQ(peak_bytes() - before, 6000);
  reset_peak_bytes();
  EXPECT_EQ(peak_bytes() - before, 4000);
}

TEST(Memory, OffLeavesTheBlocksAlone) {
  const int64_t before = current_bytes();
  at::Tensor outlives;
  {
    const MemoryScope checked(MemoryMode::checked);
    outlives = at::empty({100}, at::kByte);
    const MemoryScope off(MemoryMode::off);
    const at::Tensor t = at::empty({1000}, at::kByte);
    EXPECT_EQ(current_bytes() - before, 100);
  }
  outlives.reset();
  EXPECT_EQ(current_bytes(), before) << "a counted block is counted off when it dies, whatever the mode then";
}

TEST(Memory, LibrariesMayAllocateInOneModeAndFreeInAnother) {
  const MemoryScope off(MemoryMode::off);
  c10::Allocator* const allocator = c10::GetCPUAllocator();
  void* plain = allocator->raw_allocate(100);
  void* guarded = nullptr;
  const int64_t before = current_bytes();
  {
    const MemoryScope checked(MemoryMode::checked);
    guarded = allocator->raw_allocate(100);
    allocator->raw_deallocate(plain);
    EXPECT_EQ(current_bytes(), before + 100);
  }
  allocator->raw_deallocate(guarded);
  EXPECT_EQ(current_bytes(), before);
}

TEST(Memory, AvailableBytesArePlausible) {
  EXPECT_GT(available_bytes({"cpu", 0, std::nullopt, ""}), int64_t(64) << 20);
  EXPECT_LT(available_bytes({"cpu", 0, std::nullopt, ""}), int64_t(1) << 50);
}

}  // namespace
}  // namespace attnbench
