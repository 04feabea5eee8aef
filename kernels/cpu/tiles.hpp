// What forward and backward do with fp32 tiles besides multiplying them: room in the workspace, rows in and out,
// transposition, and the scores that the mask hides.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/band.hpp"
#include "kernels/cpu/micro_kernel.hpp"
#include "kernels/cpu/vector.hpp"
#include "kernels/flash_varlen.hpp"

namespace attnbench::flash_varlen::cpu {

constexpr int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}
constexpr int64_t blocks(int64_t count, int64_t block) {
  return (count + block - 1) / block;
}

/// Deals out a workspace in pieces of whole cache lines. Without a base it only counts, so that the size of a
/// workspace and its layout are one piece of code.
class Arena {
 public:
  explicit Arena(void* base = nullptr) : base_(static_cast<std::byte*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    const size_t at = used_;
    used_ += round_up(count * sizeof(T), 64);
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }

  /// The distance of rows is an odd number of cache lines: rows of one column spread over all sets of the cache.
  Tile take_tile(int64_t rows, int64_t columns) {
    const int64_t stride = round_up(columns, 32) + 16;
    return {take<float>(rows * stride), stride};
  }

  size_t used() const { return used_; }

 private:
  std::byte* base_ = nullptr;
  size_t used_ = 0;
};

/// tile[row][0 … d) = scale * row `first_token + row` of one head, row < rows.
void load_rows(const Shape& shape, const ConstRows& from, int64_t first_token, int64_t rows, int64_t head, float scale,
               Tile tile);

/// Row `first_token + row` of one head = scale * tile[row][0 … d), rounded once, row < rows.
void store_rows(const Shape& shape, Tile tile, int64_t rows, float scale, const Rows& to, int64_t first_token, int64_t head);

/// to [columns, rows] = from [rows, columns] transposed; `to` gets zeros in rows … round_up(rows, kLanes).
/// Reads of `from` whole squares of kLanes: its room, not its contents, must reach that far.
void transpose(Tile from, int64_t rows, int64_t columns, Tile to);

/// Sets rows x round_up(columns, kLanes) elements to 0.
void clear(Tile tile, int64_t rows, int64_t columns);

/// True in the lanes that lie in [begin, end); lane 0 has number `first`.
ATTNBENCH_INLINE Int lanes_within(int64_t first, int64_t begin, int64_t end) {
  const auto clamp = [&](int64_t bound) { return int32_t(std::clamp<int64_t>(bound - first, 0, kLanes)); };
  const Int lane = lane_numbers();
  return (lane >= broadcast(clamp(begin))) & (lane < broadcast(clamp(end)));
}

}  // namespace attnbench::flash_varlen::cpu
