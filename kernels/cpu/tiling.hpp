// How the CPU kernels cut a sequence into blocks of queries and tiles of keys.
#pragma once

#include <algorithm>

#include "kernels/cpu/band.hpp"

namespace attnbench::flash_varlen::cpu {

inline constexpr int64_t kForwardQueryBlock = 256;
inline constexpr int64_t kForwardKeyBlock = 128;
inline constexpr int64_t kEdgeKeyBlock = 64;  // where the mask cuts through the block: less is computed in vain
inline constexpr int64_t kBackwardQueryBlock = 64;
inline constexpr int64_t kBackwardKeyBlock = 128;

/// The tile of the forward that begins at key `begin` of the `visible` ones, for a block of queries.
inline Range forward_key_tile(const Band& band, Range queries, Range visible, int64_t begin) {
  Range keys = intersect({begin, begin + kForwardKeyBlock}, visible);
  if (!band.all_visible(queries, keys)) keys.end = std::min(keys.end, keys.begin + kEdgeKeyBlock);
  return keys;
}

}  // namespace attnbench::flash_varlen::cpu
