#include "kernels/cpu/tiles.hpp"

#include "kernels/cpu/convert.hpp"

namespace attnbench::flash_varlen::cpu {

void load_rows(const Shape& shape, const ConstRows& from, int64_t first_token, int64_t rows, int64_t head, float scale,
               Tile tile) {
  const int64_t bytes = size_of(shape.type);
  const auto* data = static_cast<const std::byte*>(from.data);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = (first_token + row) * from.token_stride + head * from.head_stride;
    to_fp32(shape.type, data + at * bytes, shape.d, scale, tile.row(row));
  }
}

void store_rows(const Shape& shape, Tile tile, int64_t rows, float scale, const Rows& to, int64_t first_token, int64_t head) {
  const int64_t bytes = size_of(shape.type);
  auto* data = static_cast<std::byte*>(to.data);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = (first_token + row) * to.token_stride + head * to.head_stride;
    from_fp32(shape.type, tile.row(row), shape.d, scale, data + at * bytes);
  }
}

void transpose(Tile from, int64_t rows, int64_t columns, Tile to) {
  for (int64_t row = 0; row < rows; row += kLanes) {
    const int64_t real_rows = std::min(kLanes, rows - row);
    for (int64_t column = 0; column < columns; column += kLanes) {
      Float square[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        square[i] = i < real_rows ? load(from.row(row + i) + column) : Float{};
      }
      transpose(square);
      const int64_t real_columns = std::min(kLanes, columns - column);
      for (int64_t i = 0; i < real_columns; ++i) store(to.row(column + i) + row, square[i]);
    }
  }
}

void clear(Tile tile, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; column += kLanes) store(tile.row(row) + column, Float{});
  }
}

}  // namespace attnbench::flash_varlen::cpu
