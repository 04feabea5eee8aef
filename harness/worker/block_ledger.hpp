// What the watching allocators know of their blocks: sizes, guard bands, and the writes outside that were found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "harness/worker/memory.hpp"

namespace attnbench {

/// Moves bytes between a block's memory and the host.
struct BlockMemory {
  void (*read)(void* host, const void* block, size_t bytes);
  void (*write)(void* block, const void* host, size_t bytes);
  void (*fill)(void* block, int byte, size_t bytes);
};

class BlockLedger {
 public:
  explicit BlockLedger(BlockMemory memory) : memory_(memory) {}

  /// What to ask the wrapped allocator for.
  static size_t bytes_with_guards(size_t bytes, MemoryMode mode);

  /// Takes what the wrapped allocator gave (mode is not off) and returns the block: filled and guarded if checked.
  void* enter(void* allocated, size_t bytes, MemoryMode mode);

  /// Ends the watch over a block, if there is one; returns what the wrapped allocator gave.
  void* leave(void* block);

  std::vector<Overrun> take_overruns();
  int64_t current_bytes();
  int64_t peak_bytes();
  void reset_peak_bytes();

 private:
  struct Block {
    size_t bytes = 0;
    bool guarded = false;
  };
  void inspect(char* data, const Block& block);
  size_t mend(char* band);

  const BlockMemory memory_;
  std::mutex mutex_;
  std::unordered_map<void*, Block> blocks_;
  std::vector<Overrun> overruns_;
  int64_t current_ = 0, peak_ = 0;
};

/// The mode of the innermost MemoryScope.
MemoryMode memory_mode();

/// That of the GPU (memory_cuda.cpp), if watch_cuda_memory() was called; else nullptr.
BlockLedger* cuda_ledger();

}  // namespace attnbench
