// What the watching allocators know of their blocks: sizes, guard bands, and the writes outside that were found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "harness/worker/guard_bands.hpp"
#include "harness/worker/memory.hpp"

namespace attnbench {

/// The memory that blocks lie in.
class BlockMemory {
 public:
  virtual ~BlockMemory() = default;
  /// Fills the block with this byte, and the bands around it with the pattern.
  virtual void guard(const GuardedBlock& block, unsigned char fill) = 0;
  /// Looks at the bands of blocks, now or when their users' work is done, and makes them whole again.
  virtual void look(std::span<const GuardedBlock> blocks) = 0;
  /// What all looks since the last call have seen, block by block in their order.
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
  void look(std::span<const GuardedBlock> blocks);

  const std::unique_ptr<BlockMemory> memory_;
  std::mutex mutex_;
  std::unordered_map<void*, size_t> blocks_;  ///< bytes of each
  std::vector<GuardedBlock> looked_at_;       ///< whose answers were not yet taken
  int64_t current_ = 0, peak_ = 0;
};

/// The mode of the innermost MemoryScope.
MemoryMode memory_mode();

/// That of the GPU (memory_cuda.cpp), if watch_cuda_memory() was called; else nullptr.
BlockLedger* cuda_ledger();

}  // namespace attnbench
