// Steps on rows (row_team.hpp) whose elements lie in tiles of 64: on a GPU a warp works on a tile, so that a tile's sum and
// maximum need no barrier; on a CPU loops over a tile are what the compiler vectorises.
#pragma once

#include <cmath>
#include <cstdint>

#include "harness/attention/row_team.hpp"

namespace attnbench {

inline constexpr int64_t kTile = 64;

ATTNBENCH_ON_BOTH inline int64_t tiles_of(int64_t elements) {
  return (elements + kTile - 1) / kTile;
}

/// The threads of a row's team that work on one tile: on a GPU a warp, which has the same elements in every call.
class TileTeam {
 public:
  /// f(x) for every x in [0, kTile).
  template <typename F>
  ATTNBENCH_ON_BOTH void each(F f) const {
#ifdef __CUDA_ARCH__
    f(threadIdx.x % 32);
    f(threadIdx.x % 32 + 32);
#else
#pragma GCC ivdep
    for (int64_t x = 0; x < kTile; ++x) f(x);
#endif
  }
  template <typename F>
  ATTNBENCH_ON_BOTH float sum(F f) const {
    return combined(f, [](float a, float b) { return a + b; });
  }
  /// NaN where one of them is.
  template <typename F>
  ATTNBENCH_ON_BOTH float max(F f) const {
    return combined(f, [](float a, float b) { return larger(a, b); });
  }
  /// Of numbers[0], …, numbers[last].
  ATTNBENCH_ON_BOTH float max_of(const float* numbers, int64_t last) const {
    float largest = -INFINITY;
#ifdef __CUDA_ARCH__
    for (int64_t i = threadIdx.x % 32; i <= last; i += 32) largest = larger(numbers[i], largest);
    return across(largest, [](float a, float b) { return larger(a, b); });
#else
    for (int64_t i = 0; i <= last; ++i) largest = larger(numbers[i], largest);
    return largest;
#endif
  }
  ATTNBENCH_ON_BOTH bool writes() const {
#ifdef __CUDA_ARCH__
    return threadIdx.x % 32 == 0;
#else
    return true;
#endif
  }

 private:
  template <typename F, typename Both>
  ATTNBENCH_ON_BOTH float combined(F f, Both both) const {
#ifdef __CUDA_ARCH__
    const int64_t lane = threadIdx.x % 32;
    return across(both(f(lane), f(lane + 32)), both);
#else
    float all[kTile];
    each([&](int64_t i) { all[i] = f(i); });
    fold<kTile / 2>(all, both);
    return all[0];
#endif
  }
  /// Pairwise.
  template <int half, typename Both>
  static void fold(float* all, Both both) {
    for (int i = 0; i < half; ++i) all[i] = both(all[i], all[i + half]);
    if constexpr (half > 1) fold<half / 2>(all, both);
  }
#ifdef __CUDACC__
  template <typename Both>
  __device__ static float across(float x, Both both) {
    for (int lane = 16; lane > 0; lane /= 2) x = both(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
  }
#endif
};

/// f(team of the tile, tile) for every tile, spread over the threads of a row.
template <typename F>
ATTNBENCH_ON_BOTH void each_tile(int64_t tiles, F f) {
#ifdef __CUDA_ARCH__
  for (int64_t tile = threadIdx.x / 32; tile < tiles; tile += blockDim.x / 32) f(TileTeam(), tile);
#else
  for (int64_t tile = 0; tile < tiles; ++tile) f(TileTeam(), tile);
#endif
}

}  // namespace attnbench
