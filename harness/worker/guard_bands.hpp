// The bands of known bytes around a block of memory in which a write outside of it is seen.
#pragma once

#include <cstddef>
#include <cstdint>

namespace attnbench {

inline constexpr size_t kGuardBytes = 64 << 10;

// NaN in bf16, fp16, fp32 and fp64, so that a read outside a block shows in the result; and not the NaN that arithmetic
// makes (0x7fc0, 0x7e00), so that a NaN written there shows as well.
inline constexpr uint16_t kGuardPattern = 0x7ff1;

// Every byte of a new block: NaN, or about 6e4 in fp16, 1e36 in bf16 and fp32, 1e286 in fp64.
inline constexpr unsigned char kNanFill = 0xff, kFiniteFill = 0x7b;

/// Between two bands of kGuardBytes.
struct GuardedBlock {
  char* data = nullptr;
  size_t bytes = 0;
};

/// Bytes of the two bands of a block that somebody has changed.
struct ChangedGuards {
  uint32_t before = 0, behind = 0;
};

}  // namespace attnbench
