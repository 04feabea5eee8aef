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
};

/// Every block carries release() as its deleter, whatever the mode: LibTorch's libraries rely on raw_deleter().
class WatchingAllocator final : public c10::Allocator {
 public:
  explicit WatchingAllocator(c10::Allocator* wrapped) : wrapped_(wrapped) {}

  c10::DataPtr allocate(size_t bytes) override {
    void* const data = bytes == 0 ? nullptr : mode == MemoryMode::off ? wrapped_->raw_allocate(bytes) : allocate_watched(bytes);
    return {data, data, &WatchingAllocator::release, c10::Device(c10::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &WatchingAllocator::release; }
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
  void* allocate_watched(size_t bytes) {
    const bool guarded = mode == MemoryMode::checked;
    char* data = static_cast<char*>(wrapped_->raw_allocate(guarded ? bytes + 2 * kGuardBytes : bytes));
    if (guarded) {
      fill_band(data);
      data += kGuardBytes;  // a multiple of 64: the wrapped allocator's alignment stays
      std::memset(data, 0xff, bytes);
      fill_band(data + bytes);
    }
    const std::lock_guard lock(mutex_);
    current_ += int64_t(bytes);
    peak_ = std::max(peak_, current_);
    blocks_[data] = Block{bytes, guarded};
    return data;
  }

  static void release(void* data) {
    if (!data) return;
    WatchingAllocator& self = installed();
    self.wrapped_->raw_deallocate(self.forget(static_cast<char*>(data)));
  }

  /// Ends the watch over a block, if there is one; returns what the wrapped allocator gave.
  void* forget(char* data) {
    const std::lock_guard lock(mutex_);
    const auto found = blocks_.find(data);
    if (found == blocks_.end()) return data;
    const Block block = found->second;
    inspect(data, block);
    current_ -= int64_t(block.bytes);
    blocks_.erase(found);
    return block.guarded ? data - kGuardBytes : data;
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
