#include "kernels/cpu/micro_kernel.hpp"

#include <cmath>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/cpu/tiles.hpp"

namespace attnbench::flash_varlen::cpu {
namespace {

constexpr int64_t kRoom = 96;

struct Matrix {
  std::vector<float> numbers;
  explicit Matrix(unsigned seed) : numbers(kRoom * kRoom) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (float& x : numbers) x = normal(random);
  }
  Tile tile() { return {numbers.data(), kRoom}; }
  float at(int64_t row, int64_t column) const { return numbers[row * kRoom + column]; }
};

template <Left left, Start start>
void check_product(int64_t m, int64_t n, int64_t depth) {
  Matrix A(1), B(2), C(3), scale(4);
  const Matrix before = C;
  multiply<left, start>(A.tile(), B.tile(), C.tile(), m, n, depth, scale.numbers.data());
  for (int64_t row = 0; row < kRoom; ++row) {
    for (int64_t column = 0; column < kRoom; ++column) {
      if (row >= m || column >= round_up(n, kLanes)) {
        ASSERT_EQ(C.at(row, column), before.at(row, column)) << m << "x" << n << " wrote " << row << ", " << column;
      } else if (column < n) {
        double expected = start == Start::zero ? 0 : before.at(row, column);
        if (start == Start::scale) expected *= scale.numbers[row];
        for (int64_t k = 0; k < depth; ++k) {
          expected += double(left == Left::plain ? A.at(row, k) : A.at(k, row)) * B.at(k, column);
        }
        ASSERT_TRUE(std::abs(C.at(row, column) - expected) <= 1e-4)
            << m << "x" << n << "x" << depth << ": " << row << ", " << column;
      }
    }
  }
}

TEST(MicroKernel, products_of_all_forms_and_sizes) {
  for (int64_t m = 0; m <= 2 * kBlockRows + 1; ++m) {
    for (const int64_t n : {1, 4, 15, 16, 17, 31, 32, 33, 48, 64, 80}) {
      for (const int64_t depth : {0, 1, 2, 3, 8, 33}) {
        check_product<Left::plain, Start::zero>(m, n, depth);
        check_product<Left::plain, Start::add>(m, n, depth);
        check_product<Left::transposed, Start::add>(m, n, depth);
        check_product<Left::transposed, Start::scale>(m, n, depth);
      }
    }
  }
}

TEST(Tiles, transposition_fills_the_last_vector_with_zeros) {
  for (const int64_t rows : {1, 15, 16, 17, 40}) {
    for (const int64_t columns : {1, 8, 16, 33, 64}) {
      Matrix from(1), to(2);
      const Matrix before = to;
      transpose(from.tile(), rows, columns, to.tile());
      for (int64_t column = 0; column < kRoom; ++column) {
        for (int64_t row = 0; row < kRoom; ++row) {
          float expected = row < rows ? from.at(row, column) : 0;
          if (column >= columns || row >= round_up(rows, kLanes)) expected = before.at(column, row);
          ASSERT_EQ(to.at(column, row), expected) << rows << "x" << columns;
        }
      }
    }
  }
}

}  // namespace
}  // namespace attnbench::flash_varlen::cpu
