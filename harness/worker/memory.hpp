// Allocators for LibTorch, on the CPU and on a GPU, that see what a backend does to memory. They wrap those that were there
// before.
//
//   checked  every new block is counted and filled with 0xFF (NaN in bf16, fp16, fp32 and fp64), so that an output element
//            that was never written is seen, and lies between two guard bands, so that a write outside is seen
//   finite   the same, filled with a number that is large in all of them: who drops a NaN that he reads does not drop it
//   off      blocks come straight from the wrapped allocator: for timing
// A block keeps for life what it was born with. Memory that does not come through LibTorch's allocator is not seen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "harness/run/declaration.hpp"

namespace attnbench {

enum class MemoryMode { off, checked, finite };

/// While it lives, blocks are allocated in `mode`; afterwards as before. The first one installs the allocator.
class MemoryScope {
 public:
  explicit MemoryScope(MemoryMode mode);
  ~MemoryScope();
  MemoryScope(const MemoryScope&) = delete;
  MemoryScope& operator=(const MemoryScope&) = delete;

 private:
  MemoryMode before_;
};

/// A write outside a checked block, within kGuardBytes (guard_bands.hpp) of it.
struct Overrun {
  const void* block = nullptr;  ///< first byte of the block
  size_t block_bytes = 0;
  bool past_the_end = true;  ///< else before the start
  size_t bytes = 0;          ///< guard bytes that changed
};
/// "wrote 4 bytes past the end of a block (128 bytes)"; `block` says which, where it is known.
std::string describe(const Overrun& overrun, const std::string& block = "a block");

/// Overruns of all checked blocks, alive or freed, since the last call. A damaged band is mended, so that the next
/// call reports new writes only.
std::vector<Overrun> take_overruns();

/// Bytes in checked blocks of the device that is watched, now, and the most since reset_peak_bytes().
/// Waits for nothing: a GPU's memory is counted when it is asked for.
int64_t current_bytes();
int64_t peak_bytes();
void reset_peak_bytes();

/// From now on it is a GPU's memory that is counted. Before the first tensor on a GPU; throws std::runtime_error in a build
/// without CUDA.
void watch_cuda_memory();

/// Memory that a device can still give: of a CPU MemAvailable of /proc/meminfo, the largest number where it cannot be read.
int64_t available_bytes(const Device& device);

}  // namespace attnbench
