#include "harness/worker/memory.hpp"

#include <array>
#include <atomic>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <fmt/format.h>

#include "harness/worker/block_ledger.hpp"
#include "harness/worker/cuda_device.hpp"

#ifndef _OPENMP
#error "at::parallel_for is a plain loop where its caller is compiled without -fopenmp"
#endif

namespace attnbench {

namespace {

std::atomic<MemoryMode> mode = MemoryMode::off;

class HostMemory final : public BlockMemory {
 public:
  void guard(const GuardedBlock& block, unsigned char fill) override {
    std::memcpy(block.data - kGuardBytes, whole_band().data(), kGuardBytes);
    fill_block(block, fill);
    std::memcpy(block.data + block.bytes, whole_band().data(), kGuardBytes);
  }
  void look(std::span<const GuardedBlock> blocks) override {
    for (const auto& [data, bytes] : blocks) changes_.push_back({mend(data - kGuardBytes), mend(data + bytes)});
  }
  std::vector<ChangedGuards> take_changes() override { return std::exchange(changes_, {}); }

 private:
  using Band = std::array<char, kGuardBytes>;

  /// The first write to fresh memory, which waits for its pages: side by side where there are many.
  static void fill_block(const GuardedBlock& block, unsigned char fill) {
    constexpr int64_t kBytesOfTask = 1 << 20;
    at::parallel_for(0, static_cast<int64_t>(block.bytes), kBytesOfTask, [&](int64_t begin, int64_t end) {
      std::memset(block.data + begin, fill, static_cast<size_t>(end - begin));
    });
  }

  static const Band& whole_band() {
    static const Band band = [] {
      Band filled;
      for (size_t i = 0; i < kGuardBytes; i += sizeof kGuardPattern)
        std::memcpy(filled.data() + i, &kGuardPattern, sizeof kGuardPattern);
      return filled;
    }();
    return band;
  }

  /// Changed bytes of a band, which is then whole again.
  static uint32_t mend(char* band) {
    if (std::memcmp(band, whole_band().data(), kGuardBytes) == 0) return 0;
    uint32_t changed = 0;
    for (size_t i = 0; i < kGuardBytes; ++i) changed += band[i] != whole_band()[i];
    std::memcpy(band, whole_band().data(), kGuardBytes);
    return changed;
  }

  std::vector<ChangedGuards> changes_;
};

/// Every block carries release() as its deleter, whatever the mode: LibTorch's libraries rely on raw_deleter().
class WatchingAllocator final : public c10::Allocator {
 public:
  explicit WatchingAllocator(c10::Allocator* wrapped) : wrapped_(wrapped) {}

  c10::DataPtr allocate(size_t bytes) override {
    void* const data = bytes == 0 ? nullptr : allocate_some(bytes);
    return {data, data, &WatchingAllocator::release, c10::Device(c10::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &WatchingAllocator::release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  /// The one allocator of the process; it stays installed and is never destroyed, since tensors may outlive main().
  static WatchingAllocator& installed() {
    static WatchingAllocator* const allocator = [] {
      auto* watching = new WatchingAllocator(c10::GetCPUAllocator());
      c10::SetCPUAllocator(watching, std::numeric_limits<uint8_t>::max());
      return watching;
    }();
    return *allocator;
  }

  BlockLedger ledger{std::make_unique<HostMemory>()};

 private:
  void* allocate_some(size_t bytes) {
    if (mode == MemoryMode::off) return wrapped_->raw_allocate(bytes);
    return ledger.enter(wrapped_->raw_allocate(BlockLedger::bytes_with_guards(bytes)), bytes);
  }

  static void release(void* data) {
    if (!data) return;
    WatchingAllocator& self = installed();
    self.wrapped_->raw_deallocate(self.ledger.leave(data));
  }

  c10::Allocator* const wrapped_;
};

BlockLedger& host_ledger() {
  return WatchingAllocator::installed().ledger;
}

BlockLedger& counted() {
  return cuda_ledger() ? *cuda_ledger() : host_ledger();
}

}  // namespace

MemoryMode memory_mode() {
  return mode;
}

MemoryScope::MemoryScope(MemoryMode wanted) {
  host_ledger();  // the first scope installs the allocator
  before_ = mode.exchange(wanted);
}
MemoryScope::~MemoryScope() {
  mode = before_;
}

std::string describe(const Overrun& overrun, const std::string& block) {
  return fmt::format("wrote {} bytes {} of {} ({} bytes)", overrun.bytes,
                     overrun.past_the_end ? "past the end" : "before the start", block, overrun.block_bytes);
}

std::vector<Overrun> take_overruns() {
  std::vector<Overrun> overruns = host_ledger().take_overruns();
  if (!cuda_ledger()) return overruns;
  const std::vector<Overrun> on_gpu = cuda_ledger()->take_overruns();
  overruns.insert(overruns.end(), on_gpu.begin(), on_gpu.end());
  return overruns;
}
int64_t current_bytes() {
  return counted().current_bytes();
}
int64_t peak_bytes() {
  return counted().peak_bytes();
}
void reset_peak_bytes() {
  counted().reset_peak_bytes();
}

int64_t available_bytes(const Device& device) {
  if (device.kind == "cuda") return available_cuda_bytes(device.index);
  std::ifstream meminfo("/proc/meminfo");
  std::string key, unit;
  int64_t kib = 0;
  while (meminfo >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    std::getline(meminfo, unit);
  }
  return std::numeric_limits<int64_t>::max();
}

}  // namespace attnbench
