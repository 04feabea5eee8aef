// C = start(C) + A B on fp32 tiles: the five matrix products of attention.
//
// C is cut into blocks of kBlockRows rows and two vectors of columns whose sums stay in registers over the whole
// depth: per step of depth two vectors of B are loaded and kBlockRows elements of A broadcast, for 2 kBlockRows
// multiply-adds. Columns of blocks go in the outer loop, so that a panel of B (depth x 2 vectors, 16 KB at depth 128)
// stays in the first-level cache while A passes by. Fewer rows or one vector at the edges have kernels of their own:
// exactly m rows of C are touched; columns are rounded up to whole vectors.
//
// An element of C is a sum over the depth in ascending order, whatever block it falls into.
#pragma once

#include <cstdint>
#include <utility>

#include "kernels/cpu/vector.hpp"

namespace attnbench::flash_varlen::cpu {

/// A matrix in fp32: element (row, column) is data[row * stride + column].
struct Tile {
  float* data = nullptr;
  int64_t stride = 0;
  float* row(int64_t index) const { return data + index * stride; }
  /// The part that begins at (row, column).
  Tile from(int64_t row_index, int64_t column) const { return {row(row_index) + column, stride}; }
};

/// How A is stored: [m, depth] or [depth, m].
enum class Left { plain, transposed };
/// What C holds before the sum: nothing, its values, or its values times row_scale[row].
enum class Start { zero, add, scale };

inline constexpr int kBlockRows = kVectorRegisters == 32 ? 8 : 6;

template <int rows, int vectors, Left left, Start start>
ATTNBENCH_INLINE void multiply_block(Tile A, Tile B, Tile C, int64_t depth, const float* row_scale) {
  Float sums[rows][vectors];
#pragma GCC unroll 16
  for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 2
    for (int vector = 0; vector < vectors; ++vector) {
      const float* c = C.row(row) + vector * kLanes;
      if constexpr (start == Start::zero) sums[row][vector] = Float{};
      if constexpr (start == Start::add) sums[row][vector] = load(c);
      if constexpr (start == Start::scale) sums[row][vector] = load(c) * row_scale[row];
    }
  }
  for (int64_t step = 0; step < depth; ++step) {
    Float b[vectors];
#pragma GCC unroll 2
    for (int vector = 0; vector < vectors; ++vector) b[vector] = load(B.row(step) + vector * kLanes);
#pragma GCC unroll 16
    for (int row = 0; row < rows; ++row) {
      const Float a = broadcast(left == Left::plain ? A.row(row)[step] : A.row(step)[row]);
#pragma GCC unroll 2
      for (int vector = 0; vector < vectors; ++vector) sums[row][vector] += a * b[vector];
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 2
    for (int vector = 0; vector < vectors; ++vector) store(C.row(row) + vector * kLanes, sums[row][vector]);
  }
}

/// Calls the kernel of exactly `rows` rows, 1 <= rows < kBlockRows.
template <int vectors, Left left, Start start, int... smaller>
void multiply_last_rows(std::integer_sequence<int, smaller...>, int64_t rows, Tile A, Tile B, Tile C, int64_t depth,
                        const float* row_scale) {
  ((rows == smaller + 1 ? multiply_block<smaller + 1, vectors, left, start>(A, B, C, depth, row_scale) : void()), ...);
}

template <int vectors, Left left, Start start>
void multiply_column(Tile A, Tile B, Tile C, int64_t m, int64_t depth, const float* row_scale) {
  int64_t row = 0;
  const auto A_from_row = [&] { return left == Left::plain ? A.from(row, 0) : A.from(0, row); };
  const auto scale_from_row = [&] { return start == Start::scale ? row_scale + row : nullptr; };
  for (; row + kBlockRows <= m; row += kBlockRows) {
    multiply_block<kBlockRows, vectors, left, start>(A_from_row(), B, C.from(row, 0), depth, scale_from_row());
  }
  if (row == m) return;
  multiply_last_rows<vectors, left, start>(std::make_integer_sequence<int, kBlockRows - 1>{}, m - row, A_from_row(), B,
                                           C.from(row, 0), depth, scale_from_row());
}

/// C [m, n] = start(C) + A B, where B is [depth, n]. B and C have room for n rounded up to whole vectors; what stands
/// in the surplus columns of B only reaches those of C. row_scale [m] belongs to Start::scale.
template <Left left, Start start>
void multiply(Tile A, Tile B, Tile C, int64_t m, int64_t n, int64_t depth, const float* row_scale = nullptr) {
  int64_t column = 0;
  for (; column + kLanes < n; column += 2 * kLanes) {
    multiply_column<2, left, start>(A, B.from(0, column), C.from(0, column), m, depth, row_scale);
  }
  if (column < n) multiply_column<1, left, start>(A, B.from(0, column), C.from(0, column), m, depth, row_scale);
}

}  // namespace attnbench::flash_varlen::cpu
