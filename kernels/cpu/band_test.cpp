#include "kernels/cpu/band.hpp"

#include <gtest/gtest.h>

namespace attnbench::flash_varlen::cpu {
namespace {

/// flash_varlen.hpp's definition, element by element.
bool sees(const Shape& shape, int64_t lq, int64_t lk, int64_t i, int64_t j) {
  const int64_t diagonal = i + (shape.bottom_right ? lk - lq : 0);
  if (j < 0 || j >= lk) return false;
  if (shape.window_left >= 0 && j < diagonal - shape.window_left) return false;
  return !(shape.window_right >= 0 && j > diagonal + shape.window_right);
}

void check_range(const Shape& shape, int64_t lq, int64_t lk, Range queries) {
  const Band band = band_of(shape, lq, lk);
  const Range keys = band.keys_of(queries);
  for (int64_t j = 0; j < lk; ++j) {
    bool seen = false;
    for (int64_t i = queries.begin; i < queries.end; ++i) seen = seen || sees(shape, lq, lk, i, j);
    ASSERT_EQ(seen, keys.begin <= j && j < keys.end) << lq << " " << lk << " key " << j;
  }
  if (keys.empty()) return;
  bool all = true;
  for (int64_t i = queries.begin; i < queries.end; ++i) {
    for (int64_t j = keys.begin; j < keys.end; ++j) all = all && sees(shape, lq, lk, i, j);
  }
  ASSERT_EQ(band.all_visible(queries, keys), all) << lq << " " << lk;
}

void check_keys(const Shape& shape, int64_t lq, int64_t lk, Range keys) {
  const Range queries = band_of(shape, lq, lk).queries_of(keys);
  for (int64_t i = 0; i < lq; ++i) {
    bool sees_one = false;
    for (int64_t j = keys.begin; j < keys.end; ++j) sees_one = sees_one || sees(shape, lq, lk, i, j);
    ASSERT_EQ(sees_one, queries.begin <= i && i < queries.end) << lq << " " << lk << " query " << i;
  }
}

TEST(Band, ranges_are_those_of_the_definition) {
  for (const bool bottom_right : {true, false}) {
    for (const int64_t left : {-1, 0, 2, 100}) {
      for (const int64_t right : {-1, 0, 3, 100}) {
        Shape shape;
        shape.bottom_right = bottom_right;
        shape.window_left = left;
        shape.window_right = right;
        for (int64_t lq = 1; lq <= 9; ++lq) {
          for (int64_t lk = 1; lk <= 9; ++lk) {
            for (int64_t i = 0; i < lq; i += 3) check_range(shape, lq, lk, {i, std::min(i + 3, lq)});
            for (int64_t j = 0; j < lk; j += 3) check_keys(shape, lq, lk, {j, std::min(j + 3, lk)});
          }
        }
      }
    }
  }
}

TEST(Band, a_window_of_any_size_does_not_overflow) {
  Shape shape;
  shape.window_left = INT64_MAX;
  shape.window_right = INT64_MAX;
  const Range keys = band_of(shape, 5, 7).keys_of({4, 5});
  EXPECT_EQ(keys.begin, 0);
  EXPECT_EQ(keys.end, 7);
}

}  // namespace
}  // namespace attnbench::flash_varlen::cpu
