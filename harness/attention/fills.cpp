#include "harness/attention/fills.hpp"

#include <algorithm>
#include <cmath>

#include "harness/attention/normal.hpp"
#include "harness/attention/philox.hpp"

namespace attnbench {
namespace {

constexpr float kGarbageValueScale = 16;  // padded rows of V stand out, should they leak

PhiloxWords words(uint64_t element, Stream stream, uint32_t purpose, uint64_t seed) {
  return philox4x32_10(
      {static_cast<uint32_t>(element), static_cast<uint32_t>(stream), static_cast<uint32_t>(element >> 32), purpose},
      static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

constexpr uint32_t kElements = 0, kRows = 1;  // what is numbered: the last word of the counter

void scale(float* row, int64_t channels, float factor) {
  for (int64_t x = 0; x < channels; x++) row[x] *= factor;
}

void shift(float* row, int64_t channels, float offset) {
  for (int64_t x = 0; x < channels; x++) row[x] += offset;
}

}  // namespace

uint64_t RowDrawer::first_element(const RowIndex& index) const {
  return static_cast<uint64_t>((index.token * heads_ + index.head) * channels_);
}

uint32_t RowDrawer::row_word(const RowIndex& index) const {
  return words(static_cast<uint64_t>(index.token * heads_ + index.head), stream_, kRows, seed_).a;
}

void RowDrawer::normal(const RowIndex& index, float* row) const {
  const uint64_t first = first_element(index);
  for (int64_t x = 0; x < channels_; x++) {
    const PhiloxWords w = words(first + static_cast<uint64_t>(x), stream_, kElements, seed_);
    row[x] = normal_from(w.a, w.b);
  }
}

void RowDrawer::unit(const RowIndex& index, float* row) const {
  const uint64_t first = first_element(index);
  for (int64_t x = 0; x < channels_; x++)
    row[x] = unit_from(words(first + static_cast<uint64_t>(x), stream_, kElements, seed_).a);
}

void RowDrawer::sparse_int(const RowIndex& index, float* row) const {
  const uint64_t first = first_element(index);
  for (int64_t x = 0; x < channels_; x++) {
    const PhiloxWords w = words(first + static_cast<uint64_t>(x), stream_, kElements, seed_);
    row[x] = w.a % 5 ? 0.0f : static_cast<float>(static_cast<int32_t>(w.b % 5) - 2);
  }
}

void RowDrawer::draw_qkv(const RowIndex& index, float* row) const {
  if (fill_ == Fill::unit) return unit(index, row);
  if (fill_ == Fill::sparse_int) return sparse_int(index, row);
  if (fill_ == Fill::ones_v && stream_ == Stream::v) {
    std::fill_n(row, channels_, 1.0f);
    return;
  }
  normal(index, row);
  const bool q = stream_ == Stream::q, k = stream_ == Stream::k, v = stream_ == Stream::v;
  switch (fill_) {
    case Fill::peaked:
      if (q) scale(row, channels_, 4);
      break;
    case Fill::shifted_negative: {
      const float apart = std::sqrt(200.0f * std::sqrt(static_cast<float>(channels_)));
      if (q) row[0] += apart;
      if (k) row[0] -= apart;
      break;
    }
    case Fill::deep_negative:
      if (q) row[0] = kDeepNegative;
      if (k) row[0] = -kDeepNegative;
      break;
    case Fill::ramp:
      if (q) row[0] += 6;
      if (k) row[0] += 10.0f * static_cast<float>(index.position) / static_cast<float>(index.length);
      break;
    case Fill::mean_offset:
      if (k) shift(row, channels_, 2);
      if (v) shift(row, channels_, 1.5f);
      break;
    case Fill::row_scale:
      if (q || v) scale(row, channels_, std::ldexp(1.0f, static_cast<int>(row_word(index) % 5) - 2));
      break;
    case Fill::normal:
    case Fill::ones_v:
    case Fill::unit:
    case Fill::sparse_int:
      break;
  }
}

void RowDrawer::draw_dout(const RowIndex& index, float* row) const {
  switch (dout_) {
    case Dout::normal:
      return normal(index, row);
    case Dout::one_hot:
      std::fill_n(row, channels_, 0.0f);
      row[row_word(index) % static_cast<uint32_t>(channels_)] = 1;
      return;
    case Dout::zeros:
      std::fill_n(row, channels_, 0.0f);
      return;
    case Dout::ones:
      std::fill_n(row, channels_, 1.0f);
      return;
  }
}

void RowDrawer::draw(const RowIndex& index, float* row) const {
  switch (stream_) {
    case Stream::q:
    case Stream::k:
    case Stream::v:
      return draw_qkv(index, row);
    case Stream::dout:
      return draw_dout(index, row);
    case Stream::q_garbage:
    case Stream::k_garbage:
    case Stream::sink:
      return normal(index, row);
    case Stream::v_garbage:
      normal(index, row);
      return scale(row, channels_, kGarbageValueScale);
  }
}

}  // namespace attnbench
