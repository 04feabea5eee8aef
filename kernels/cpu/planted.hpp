// The CPU kernels with one defect (kernels/defects.hpp): Sound's questions (sound.hpp), answered wrongly where it is planted.
// Rounding is to the dtype of the shape. Tiles of 64 are meant where a defect speaks of tiles and does not name another size.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/convert.hpp"
#include "kernels/cpu/sound.hpp"
#include "kernels/cpu/tiles.hpp"
#include "kernels/cpu/tiling.hpp"
#include "kernels/defects.hpp"

namespace attnbench::flash_varlen::cpu {

/// The block of queries in the middle of a sequence.
inline Range middle_queries(int64_t lq) {
  const int64_t begin = blocks(lq, kBackwardQueryBlock) / 2 * kBackwardQueryBlock;
  return intersect({begin, begin + kBackwardQueryBlock}, {0, lq});
}

class Planted : public Sound {
 public:
  Planted(Defect defect, Type type) : defect_(defect), type_(type) {}

  // Shape, mask and scale.
  Sequence sequence(const Shape& shape, int64_t index) const {
    Sequence s = sequence_of(shape, index);
    if (is(Defect::cu_seqlens_off_by_one) && index > 0 && s.first_k > 0) --s.first_k;
    if (is(Defect::next_key_read) && index + 1 < shape.sequences && s.first_k + s.lk < shape.cu_k[shape.sequences]) ++s.lk;
    if (is(Defect::last_key_dropped) && s.lk > 0) --s.lk;
    return s;
  }

  Band band(const Shape& shape, const Band& sound) const {
    Band b = sound;
    if (is(Defect::other_corner)) {
      const int64_t shift = shape.bottom_right ? b.lq - b.lk : b.lk - b.lq;
      b.first += shift, b.last += shift;
    }
    // A key more or less at the end moves the bottom-right corner: the diagonal of the sound sequence is kept.
    if (shape.bottom_right && is(Defect::next_key_read)) --b.first, --b.last;
    if (shape.bottom_right && is(Defect::last_key_dropped)) ++b.first, ++b.last;
    if (shape.window_right >= 0 && is(Defect::causal_one_late)) ++b.last;
    if (shape.window_right >= 0 && is(Defect::causal_one_early)) --b.last;
    if (shape.window_left >= 0 && is(Defect::window_one_wider)) --b.first;
    if (shape.window_left >= 0 && is(Defect::window_one_narrower)) ++b.first;
    return b;
  }
  Band backward_band(const Shape& shape, const Band& sound) const {
    Band b = sound;
    if (shape.window_right >= 0 && is(Defect::backward_causal_one_late)) ++b.last;
    return b;
  }

  int64_t key_head(const Shape& shape, int64_t head) const {
    return is(Defect::key_head_modulo) ? head % shape.hkv : Sound::key_head(shape, head);
  }

  float score_scale(float scale) const {
    switch (defect_) {
      case Defect::scale_twice:
        return scale * scale;
      case Defect::scale_in_bf16:
        return rounded_to(Type::bf16, scale);
      case Defect::log2e_in_bf16:
        return scale * (1.4453125f / kLog2e);
      case Defect::log2e_short:
        return scale * (1.4427f / kLog2e);
      default:
        return scale;
    }
  }

  int64_t depth(int64_t d) const { return is(Defect::depth_16_short) ? std::max<int64_t>(d - 16, 0) : d; }

  Range visited(const Shape& shape, const Place& place, const Band& band, Range visible) const {
    Range r = visible;
    if (is(Defect::hidden_keys_multiplied)) r = {0, band.lk};
    if (is(Defect::last_key_tile_skipped) && r.end / kTile * kTile > r.begin) r.end = r.end / kTile * kTile;
    if (is(Defect::first_key_tile_skipped) && is_last(shape, place) && r.size() > kTile) r.begin += kTile;
    return r;
  }

  Backward arguments(const Backward& sound) const {
    Backward args = sound;
    if (is(Defect::dout_strides_ignored))
      args.dout.token_stride = sound.shape.hq * sound.shape.d, args.dout.head_stride = sound.shape.d;
    return args;
  }

  // Forward.
  void keys_loaded(Tile K, const Shape& shape, const Place& place, const Sequence& sequence, Range keys) const {
    const int64_t last = sequence.lk - 1 - keys.begin;
    if (is(Defect::stale_last_key) && place.head == 0 && keys.end == sequence.lk)
      last > 0 ? copy_row(K, std::max<int64_t>(last - kTile, 0), last, shape.d) : multiply_rows(K, 1, shape.d, 0);
    if (is(Defect::key_row_duplicated) && is_first(place) && keys.begin > 0 && keys.size() > 1) copy_row(K, 1, 0, shape.d);
  }
  void values_loaded(Tile V, const Shape& shape, const Place& place, const Sequence& sequence, Range keys) const {
    if (is(Defect::values_swizzled) && is_first(place) && keys.size() > 3)
      for (int64_t x = 0; x + 16 <= shape.d; x += 16) std::swap_ranges(V.row(3) + x, V.row(3) + x + 8, V.row(3) + x + 8);
    if (is(Defect::value_columns_zero) && is_last(shape, place) && keys.end == sequence.lk)
      for (int64_t row = keys.size() > kTile ? kTile : 0; row < keys.size(); ++row)
        std::fill_n(V.row(row) + std::max<int64_t>(shape.d - 8, 0), std::min<int64_t>(shape.d, 8), 0.f);
  }
  void scores_computed(Tile St, int64_t keys, int64_t queries) const {
    if (is(Defect::scores_rounded)) round_rows(St, keys, queries);
  }

  Float maximum(Float maximum, int64_t keys) const {
    return is(Defect::tail_unmasked) && padding(keys) > 0 ? max(maximum, Float{}) : maximum;
  }
  Float sum(Float sum, Float shift, int64_t keys) const {
    return is(Defect::tail_unmasked) ? sum + float(padding(keys)) * cpu::exp(-shift) : sum;
  }
  Float exp(Float x) const {
    switch (defect_) {
      case Defect::base_two:
        return cpu::exp(x * std::log(2.f));
      case Defect::exp_oscillates:
        return each(x, [](float y) { return y < -80 ? 0 : std::exp(y) * (1 + 0x1p-9f * std::sin(40 * y)); });
      case Defect::exp_drifts:
        return each(x, [](float y) { return std::exp(y) * (1 + 0x1p-8f * std::max(y, -8.f) / 8); });
      case Defect::exp_flushed:
        return each(x, [](float y) { return std::exp(y) < 0x1p-10f ? 0.f : std::exp(y); });
      default:
        return cpu::exp(x);
    }
  }
  Float stored_p(Float p) const {
    switch (defect_) {
      case Defect::p_truncated:
        return each(p, [&](float x) { return truncated(x); });
      case Defect::p_in_fp8:
        return each(p, [](float x) {
          const float spacing = std::ldexp(1.f, std::max(x > 0 ? std::ilogb(x) : -6, -6) - 3);
          return std::nearbyint(x / spacing) * spacing;
        });
      case Defect::p_subnormals_flushed:
        return type_ == Type::fp16 ? each(p, [](float x) { return x < 0x1p-14f ? 0.f : x; }) : p;
      default:
        return p;
    }
  }
  Float summed_p(Float p) const {
    return is(Defect::l_from_rounded_p) ? each(p, [&](float x) { return rounded(x); }) : p;
  }

  Rescale rescale(Rescale step, Float old_maximum) const {
    const Float one = broadcast(1.f);
    const auto seen = old_maximum > broadcast(-std::numeric_limits<float>::infinity());
    if (is(Defect::o_not_rescaled)) step.o = seen ? one : step.o;
    if (is(Defect::l_not_rescaled)) step.l = seen ? one : step.l;
    if (is(Defect::rescale_frame)) {
      const auto kept = seen & (step.maximum - old_maximum < broadcast(5.5f));
      step.maximum = kept ? old_maximum : step.maximum;
      step.o = kept ? one : step.o, step.l = kept ? one : step.l;
    }
    return step;
  }

  /// After every tile: O of the forward, dK and dV of the backward.
  void accumulated(Tile sums, int64_t rows, int64_t d) const {
    if (is(Defect::o_accumulator_rounded) || is(Defect::dk_dv_accumulators_rounded)) round_rows(sums, rows, d);
  }

  float lse(float m, float l, const Place& place, int64_t token) const {
    switch (defect_) {
      case Defect::lse_element_off: {
        const float sound = m + std::log(l);
        return token == 0 && place.head == 0 ? sound + sound * 0x1p-16f + 0x1p-15f : sound;
      }
      case Defect::base_two:
        return m + std::log2(l);
      case Defect::lse_in_log2:
        return (m + std::log(l)) * kLog2e;
      case Defect::lse_is_maximum:
        return m;
      case Defect::lse_rounded:
        return rounded(m + std::log(l));
      default:
        return m + std::log(l);
    }
  }

  FinishedRow finished(float* row, float factor, const Shape& shape, const Place& place, int64_t token) const {
    const bool last = place.head == shape.hq - 1 && token == shape.cu_q[shape.sequences] - 1;
    if (is(Defect::o_truncated)) {
      for (int64_t x = 0; x < shape.d; ++x) row[x] = truncated(row[x] * factor);
      return {true, 1};
    }
    if (is(Defect::last_row_halved) && last) return {true, factor / 2};
    return {!(is(Defect::last_row_unwritten) && last), is(Defect::o_zero) ? 0 : factor};
  }

  // Backward.
  float row_sum(float sound, const float* dout, const float* o, int64_t d) const {
    if (is(Defect::d_zero)) return 0;
    if (!is(Defect::d_rounded) && !is(Defect::d_from_rounded_products)) return sound;
    float sum = 0;
    for (int64_t x = 0; x < d; ++x) {
      sum += rounded(dout[x] * o[x]);
      if (is(Defect::d_rounded)) sum = rounded(sum);
    }
    return sum;
  }
  int64_t lse_row_offset(int64_t query) const { return is(Defect::lse_row_off_by_one) && ends_tile(query) ? -1 : 0; }
  int64_t d_row_offset(int64_t query) const { return is(Defect::d_row_off_by_one) && ends_tile(query) ? -1 : 0; }

  Float backward_exp(Float x) const {
    if (is(Defect::base_two)) return cpu::exp(x * std::log(2.f));
    return cpu::exp(is(Defect::backward_log2e_short) ? x * (1.4427f / kLog2e) : x);
  }
  Float ds(Float p, Float dp, Float d) const {
    const auto round = [&](float x) { return rounded(x); };
    switch (defect_) {
      case Defect::dp_rounded:
        return p * (each(dp, round) - d);
      case Defect::ds_from_rounded:
        return each(each(p, round) * each(dp - d, round), round);
      case Defect::ds_truncated:
        return each(p * (dp - d), [&](float x) { return truncated(x); });
      default:
        return p * (dp - d);
    }
  }
  Float backward_stored_p(Float p) const {
    return is(Defect::backward_p_truncated) ? each(p, [&](float x) { return truncated(x); }) : p;
  }

  // P and dS of one tile, [rows, keys], before the products that read them.
  void before_dv(Tile P, const Place& place, const Band& band, int64_t query_block, int64_t key_block, int64_t rows,
                 int64_t keys) const {
    const bool last = query_block == (band.lq - 1) / kTile && key_block == 0;
    if (is(Defect::dv_last_queries_lost) && is_first(place) && last) clear(P, rows, keys);
  }
  void before_dk(Tile dS, const Place& place, const Band& band, int64_t query_block, int64_t key_block, int64_t rows,
                 int64_t keys) const {
    if (is(Defect::dk_tile_twice) && is_chosen(place, band, query_block, key_block)) multiply_rows(dS, rows, keys, 2);
  }
  void before_dq(Tile dS, const Place& place, const Band& band, int64_t query_block, int64_t key_block, int64_t rows,
                 int64_t keys) const {
    if (!is_chosen(place, band, query_block, key_block)) return;
    if (is(Defect::dk_tile_twice)) multiply_rows(dS, rows, keys, 0.5f);
    if (is(Defect::dq_tile_twice)) multiply_rows(dS, rows, keys, 2);
    if (is(Defect::dq_tile_lost)) clear(dS, rows, keys);
  }
  /// dQ and dS begin at queries.begin; dS and K at the same key.
  void dq_added(Tile dQ, Tile dS, Tile K, const Shape& shape, const Place& place, Range queries, int64_t keys, int64_t key_block,
                Range key_blocks) const {
    if (is(Defect::dq_accumulator_rounded)) round_rows(dQ, queries.size(), shape.d);
    const bool fragment = is(Defect::dq_fragment_lost), element = is(Defect::dq_element_lost);
    if (!(fragment || element) || !is_first(place) || key_block != key_blocks.begin || queries.begin / kTile != 0) return;
    const int64_t first = std::max<int64_t>(queries.size() - (fragment ? 16 : 1), 0), channels = fragment ? 8 : 1;
    for (int64_t row = first; row < queries.size(); ++row)
      for (int64_t x = 0; x < channels; ++x)
        for (int64_t key = 0; key < keys; ++key) dQ.row(row)[x] -= dS.row(row)[key] * K.row(key)[x];
  }

  int64_t first_head(int64_t first, int64_t group) const { return is(Defect::dk_dv_one_head) ? first + group - 1 : first; }
  bool writes_unseen_keys() const { return !is(Defect::unseen_keys_unwritten); }
  void unseen_keys(Tile dK, int64_t keys, int64_t d) const {
    if (is(Defect::unseen_keys_stale)) std::fill_n(dK.row(keys - 1), d, 0x1p-10f);
  }
  float dq_scale(float scale) const { return is(Defect::dq_unscaled) ? 1 : is(Defect::dq_zero) ? 0 : scale; }
  /// Q was multiplied by score_scale(scale); at scale 0 there is nothing of it left.
  float dk_factor(float scale) const {
    if (scale == 0) return 0;
    const float sound = scale / score_scale(scale);
    return is(Defect::dk_unscaled) ? 1 / scale : is(Defect::dk_scaled_twice) ? scale : is(Defect::dk_zero) ? 0 : sound;
  }
  float dv_factor() const { return is(Defect::dv_zero) ? 0 : 1; }
  void stored(Tile rows, int64_t count, int64_t d, float scale) const {
    if (!is(Defect::dq_truncated) || scale == 0) return;
    for (int64_t row = 0; row < count; ++row)
      for (int64_t x = 0; x < d; ++x) rows.row(row)[x] = truncated(rows.row(row)[x] * scale) / scale;
  }

 private:
  static constexpr int64_t kTile = 64;
  static constexpr float kLog2e = 1.44269504f;

  bool is(Defect defect) const { return defect == defect_; }
  static bool is_first(const Place& place) { return place.sequence == 0 && place.head == 0; }
  static bool is_last(const Shape& shape, const Place& place) {
    return place.sequence == shape.sequences - 1 && place.head == shape.hq - 1;
  }
  static bool ends_tile(int64_t query) { return query % kTile == kTile - 1; }
  /// The tile of the block of queries in the middle of the first sequence, head 0, with its first keys.
  static bool is_chosen(const Place& place, const Band& band, int64_t query_block, int64_t key_block) {
    const Range keys = band.keys_of(middle_queries(band.lq));
    return is_first(place) && query_block == middle_queries(band.lq).begin / kTile && key_block == keys.begin / kBackwardKeyBlock;
  }
  static int64_t padding(int64_t keys) { return (kTile - keys % kTile) % kTile; }

  template <class Function>
  static Float each(Float x, const Function& function) {
    for (int64_t lane = 0; lane < kLanes; ++lane) x[lane] = function(x[lane]);
    return x;
  }
  static float rounded_to(Type type, float x) {
    std::byte bytes[4];
    from_fp32(type, &x, 1, 1, bytes);
    to_fp32(type, bytes, 1, 1, &x);
    return x;
  }
  float rounded(float x) const { return rounded_to(type_, x); }
  /// Towards zero.
  float truncated(float x) const {
    const float nearest = rounded(x);
    if (!(std::abs(nearest) > std::abs(x))) return nearest;
    std::byte bytes[4];
    from_fp32(type_, &nearest, 1, 1, bytes);
    uint16_t magnitude = 0;  // one less in magnitude is one less as a number, sign apart
    std::memcpy(&magnitude, bytes, sizeof magnitude);
    --magnitude;
    std::memcpy(bytes, &magnitude, sizeof magnitude);
    float below = 0;
    to_fp32(type_, bytes, 1, 1, &below);
    return below;
  }
  void round_rows(Tile tile, int64_t rows, int64_t columns) const {
    std::vector<std::byte> bytes(columns * 4);
    for (int64_t row = 0; row < rows; ++row) {
      from_fp32(type_, tile.row(row), columns, 1, bytes.data());
      to_fp32(type_, bytes.data(), columns, 1, tile.row(row));
    }
  }
  static void multiply_rows(Tile tile, int64_t rows, int64_t columns, float factor) {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t x = 0; x < columns; ++x) tile.row(row)[x] *= factor;
  }
  static void copy_row(Tile tile, int64_t from, int64_t to, int64_t columns) {
    std::copy_n(tile.row(from), columns, tile.row(to));
  }

  Defect defect_;
  Type type_;
};

}  // namespace attnbench::flash_varlen::cpu
