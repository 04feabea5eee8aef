// How the CUDA kernels cut a sequence into tiles: what a proof that a defect cannot show has to know (the kernels assert it).
#pragma once

#include <cstdint>

namespace attnbench::flash_varlen::sm80 {

inline constexpr int64_t kForwardQueryBlock = 128;
inline constexpr int64_t kForwardKeyBlock = 64;  ///< tiles begin at its multiples
inline constexpr int64_t kBackwardQueryBlock = 64;
/// Of the planted kernels; the sound ones take wider ones where the device has the shared memory.
constexpr int64_t planted_backward_key_block(int64_t d) {
  return d == 64 ? 128 : 64;
}

}  // namespace attnbench::flash_varlen::sm80
