#include "harness/worker/memory.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <limits>
#include <mutex>
#include <string>
#include <unordered_map>

#include <c10/core/CPUAllocator.h>

namespace attnbench {

namespace {

// NaN in bf16, fp16, fp32 and fp64, so that a read outside a block shows in the result; and not the NaN that arithmetic
// makes (0x7fc0, 0x7e00), so that a NaN written there shows as well.
constexpr uint16_t kGuardPattern = 0x7ff1;

void fill_band(char* band) {
  for (size_t i = 0; i < kGuardBytes; i += sizeof kGuardPattern) std::memcpy(band + i, &kGuardPattern, sizeof kGuardPattern);
}

/// Changed bytes of a band, which is then whole again.
size_t mend_band(char* band) {
  char whole[kGuardBytes];
  fill_band(whole);
  size_t changed = 0;
  for (size_t i = 0; i < kGuardBytes; ++i) changed += band[i] != whole[i];
  std::memcpy(band, whole, kGuardBytes);
  return changed;
}

struct Block {
  size_t bytes = 0;
  bool guarded = false;
  c10::DataPtr owner;  ///< of the wrapped allocator
};

class WatchingAllocator final : public c10::Allocator {
 public:
  explicit WatchingAllocator(c10::Allocator* wrapped) : wrapped_(wrapped) {}

  c10::DataPtr allocate(size_t bytes) override {
    const MemoryMode mode = this->mode;
    if (mode == MemoryMode::off || bytes == 0) return wrapped_->allocate(bytes);
    const bool guarded = mode == MemoryMode::checked;
    c10::DataPtr owner = wrapped_->allocate(guarded ? bytes + 2 * kGuardBytes : bytes);
    char* data = static_cast<char*>(owner.get());
    if (guarded) {
      fill_band(data);
      data += kGuardBytes;  // a multiple of 64: the wrapped allocator's alignment stays
      std::memset(data, 0xff, bytes);
      fill_band(data + bytes);
    }
    const c10::Device device = owner.device();
    const std::lock_guard lock(mutex_);
    current_ += int64_t(bytes);
    peak_ = std::max(peak_, current_);
    blocks_[data] = Block{bytes, guarded, std::move(owner)};
    return {data, data, &WatchingAllocator::release, device};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  std::vector<Overrun> take_overruns() {
    const std::lock_guard lock(mutex_);
    for (auto& [data, block] : blocks_) inspect(static_cast<char*>(data), block);
    return std::exchange(overruns_, {});
  }

  int64_t current() {
    const std::lock_guard lock(mutex_);
    return current_;
  }
  int64_t peak() {
    const std::lock_guard lock(mutex_);
    return peak_;
  }
  void reset_peak() {
    const std::lock_guard lock(mutex_);
    peak_ = current_;
  }

  /// The one allocator of the process; it stays installed and is never destroyed, since tensors may outlive main().
  static WatchingAllocator& installed() {
    static WatchingAllocator* const allocator = [] {
      auto* watching = new WatchingAllocator(c10::GetCPUAllocator());
      c10::SetCPUAllocator(watching, std::numeric_limits<uint8_t>::max());
      return watching;
    }();
    return *allocator;
  }

  std::atomic<MemoryMode> mode = MemoryMode::off;

 private:
  static void release(void* data) {
    WatchingAllocator& self = installed();
    Block block;
    {
      const std::lock_guard lock(self.mutex_);
      const auto found = self.blocks_.find(data);
      self.inspect(static_cast<char*>(data), found->second);
      block = std::move(found->second);
      self.blocks_.erase(found);
      self.current_ -= int64_t(block.bytes);
    }
  }

  void inspect(char* data, const Block& block) {
    if (!block.guarded) return;
    if (const size_t changed = mend_band(data - kGuardBytes)) overruns_.push_back({data, block.bytes, false, changed});
    if (const size_t changed = mend_band(data + block.bytes)) overruns_.push_back({data, block.bytes, true, changed});
  }

  c10::Allocator* const wrapped_;
  std::mutex mutex_;
  std::unordered_map<void*, Block> blocks_;
  std::vector<Overrun> overruns_;
  int64_t current_ = 0, peak_ = 0;
};

}  // namespace

MemoryScope::MemoryScope(MemoryMode mode) : before_(WatchingAllocator::installed().mode.exchange(mode)) {}
MemoryScope::~MemoryScope() {
  WatchingAllocator::installed().mode = before_;
}

std::vector<Overrun> take_overruns() {
  return WatchingAllocator::installed().take_overruns();
}
int64_t current_bytes() {
  return WatchingAllocator::installed().current();
}
int64_t peak_bytes() {
  return WatchingAllocator::installed().peak();
}
void reset_peak_bytes() {
  WatchingAllocator::installed().reset_peak();
}

int64_t available_bytes() {
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
