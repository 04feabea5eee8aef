// What the watching allocators know of their blocks: sizes, guard bands, and the writes outside that were found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "harness/worker/memory.hpp"

namespace attnbench {

// NaN in bf16, fp16, fp32 and fp64, so that a read outside a block shows in the result; and not the NaN that arithmetic
// makes (0x7fc0, 0x7e00), so that a NaN written there shows as well.
inline constexpr uint16_t kGuardPattern = 0x7ff1;

/// Bytes of the two guard bands of a block that somebody has changed.
struct ChangedGuards {
  size_t before = 0, behind = 0;
};

/// The memory that blocks lie in.
class BlockMemory {
 public:
  virtual ~BlockMemory() = default;
  /// Fills the block with NaN, and the bands around it with the pattern.
  virtual void guard(char* block, size_t bytes) = 0;
  /// Looks at the bands of a block, now or when its users' work is done, and makes them whole again.
  virtual void look(char* block, size_t bytes) = 0;
  /// What all looks since the last call have seen, in their order.
  virtual std::vector<ChangedGuards> take_changes() = 0;
};

class BlockLedger {
 public:
  explicit BlockLedger(std::unique_ptr<BlockMemory> memory) : memory_(std::move(memory)) {}

  /// What to ask the wrapped allocator for.
  static size_t bytes_with_guards(size_t bytes) { return bytes + 2 * kGuardBytes; }

  /// Takes what the wrapped allocator gave and returns the block, filled and guarded.
  void* enter(void* allocated, size_t bytes);

  /// Ends the watch over a block, if there is one; returns what the wrapped allocator gave.
  void* leave(void* block);

  std::vector<Overrun> take_overruns();
  int64_t current_bytes();
  int64_t peak_bytes();
  void reset_peak_bytes();

 private:
  struct Look {
    void* block = nullptr;
    size_t bytes = 0;
  };
  void look(void* block, size_t bytes);

  const std::unique_ptr<BlockMemory> memory_;
  std::mutex mutex_;
  std::unordered_map<void*, size_t> blocks_;  ///< bytes of each
  std::vector<Look> looks_;                   ///< whose answers were not yet taken
  int64_t current_ = 0, peak_ = 0;
};

/// The mode of the innermost MemoryScope.
MemoryMode memory_mode();

/// That of the GPU (memory_cuda.cpp), if watch_cuda_memory() was called; else nullptr.
BlockLedger* cuda_ledger();

}  // namespace attnbench
