#include "backends/attention/flash_varlen_equivalence.hpp"

#include <cmath>
#include <functional>
#include <vector>

#include "kernels/cpu/planted.hpp"
#include "kernels/cpu/tiling.hpp"

namespace attnbench {
namespace {

using flash_varlen::Defect;
using namespace flash_varlen::cpu;

/// Shape and bands of a case, as the kernels see them.
class Tiling {
 public:
  explicit Tiling(const Case& c) : problem_(c.problem), lengths_(sequence_lengths(c.problem, c.seed)) {
    shape_.sequences = static_cast<int64_t>(lengths_.q.size());
    shape_.hq = problem_.hq, shape_.hkv = problem_.hkv, shape_.d = problem_.d;
    shape_.bottom_right = problem_.align == Align::bottom_right;
    if (problem_.window) shape_.window_left = problem_.window->left, shape_.window_right = problem_.window->right;
    if (problem_.mask == Mask::causal) shape_.window_right = 0;
    for (size_t i = 0; i < lengths_.q.size(); ++i) bands_.push_back(band_of(shape_, lengths_.q[i], lengths_.k[i]));
  }

  const Problem& problem() const { return problem_; }
  const std::vector<Band>& bands() const { return bands_; }
  int64_t lq(size_t sequence) const { return lengths_.q[sequence]; }
  int64_t lk(size_t sequence) const { return lengths_.k[sequence]; }
  bool is_last(size_t sequence) const { return sequence + 1 == bands_.size(); }

  static Range keys_of(const Band& band, int64_t query) { return band.keys_of({query, query + 1}); }

  /// Some query of some sequence fulfils it.
  bool any_query(const std::function<bool(const Band&, Range keys)>& fulfils) const {
    for (const Band& band : bands_)
      for (int64_t query = 0; query < band.lq; ++query)
        if (fulfils(band, keys_of(band, query))) return true;
    return false;
  }
  /// The planted band shows some query other keys than the sound one does.
  bool band_differs(Defect defect, bool backward) const {
    const Planted planted(defect, flash_varlen::Type::bf16);
    for (const Band& sound : bands_) {
      const Band other = backward ? planted.backward_band(shape_, sound) : planted.band(shape_, sound);
      for (int64_t query = 0; query < sound.lq; ++query) {
        const Range a = keys_of(sound, query), b = keys_of(other, query);
        if (a.size() != b.size() || (!a.empty() && a.begin != b.begin)) return true;
      }
    }
    return false;
  }
  /// Some tile of the forward fulfils it: (sequence, its queries, its keys).
  bool any_tile(const std::function<bool(size_t, Range, Range)>& fulfils) const {
    for (size_t sequence = 0; sequence < bands_.size(); ++sequence) {
      const Band& band = bands_[sequence];
      for (int64_t first = 0; first < band.lq; first += kForwardQueryBlock) {
        const Range queries = intersect({first, first + kForwardQueryBlock}, {0, band.lq});
        const Range visible = band.keys_of(queries);
        for (Range keys{visible.begin, visible.begin}; keys.end < visible.end;) {
          keys = forward_key_tile(band, queries, visible, keys.end);
          if (fulfils(sequence, queries, keys)) return true;
        }
      }
    }
    return false;
  }
  /// Some query sees keys of two tiles of the forward.
  bool some_query_sees_two_tiles() const {
    return any_tile([&](size_t sequence, Range queries, Range keys) {
      const Band& band = bands_[sequence];
      for (int64_t query = queries.begin; query < queries.end; ++query) {
        const Range seen = keys_of(band, query);
        if (seen.begin < keys.begin && seen.end > keys.begin) return true;
      }
      return false;
    });
  }
  /// Of the first sequence: some of these queries sees two keys or more (with one key dS is 0).
  bool see_two_keys(Range queries) const {
    for (int64_t query = queries.begin; query < queries.end; ++query)
      if (keys_of(bands_.front(), query).size() >= 2) return true;
    return false;
  }
  Range queries_of_first_sequence(int64_t begin, int64_t end) const { return intersect({begin, end}, {0, lq(0)}); }

 private:
  Problem problem_;
  SequenceLengths lengths_;
  flash_varlen::Shape shape_;
  std::vector<Band> bands_;
};

bool sees_the_last_key(const Band& band, Range keys) {
  return band.lk > 0 && !keys.empty() && keys.end == band.lk;
}

/// Some tile of 64 holds a key that no query sees beside one that some query sees.
bool hidden_keys_share_a_tile(const Tiling& tiling) {
  for (const Band& band : tiling.bands()) {
    if (band.lq == 0) continue;
    const Range seen = band.keys_of({0, band.lq});
    if (!seen.empty() && (seen.begin % kEdgeKeyBlock != 0 || (seen.end % kEdgeKeyBlock != 0 && seen.end < band.lk))) return true;
  }
  return false;
}

bool some_key_tile_is_unseen(const Tiling& tiling) {
  for (const Band& band : tiling.bands())
    for (int64_t key = 0; key < band.lk; key += kBackwardKeyBlock)
      if (band.queries_of(intersect({key, key + kBackwardKeyBlock}, {0, band.lk})).empty()) return true;
  return false;
}

/// The defect of this group can show.
bool mask_defect_shows(Defect defect, const Tiling& tiling) {
  switch (defect) {
    case Defect::key_head_modulo:
      return tiling.problem().group() > 1 && tiling.problem().hkv > 1;
    case Defect::cu_seqlens_off_by_one:
      for (size_t i = 1; i < tiling.bands().size(); ++i)
        if (tiling.lk(i - 1) > 0 && tiling.lq(i) > 0 && !tiling.bands()[i].keys_of({0, tiling.lq(i)}).empty()) return true;
      return false;
    case Defect::next_key_read:
      for (size_t i = 0; i + 1 < tiling.bands().size(); ++i) {
        Band wider = tiling.bands()[i];
        ++wider.lk;
        if (tiling.lk(i + 1) > 0 && wider.lq > 0 && wider.keys_of({0, wider.lq}).end == wider.lk) return true;
      }
      return false;
    case Defect::last_key_dropped:
      return tiling.any_query(sees_the_last_key);
    case Defect::first_key_tile_skipped:
      return tiling.any_tile([&](size_t sequence, Range queries, Range) {
        return tiling.is_last(sequence) && tiling.bands()[sequence].keys_of(queries).size() > kEdgeKeyBlock;
      });
    case Defect::last_key_tile_skipped:
      return tiling.any_tile([&](size_t sequence, Range queries, Range) {
        const Range visible = tiling.bands()[sequence].keys_of(queries);
        return visible.end % kEdgeKeyBlock != 0 && visible.end / kEdgeKeyBlock * kEdgeKeyBlock > visible.begin;
      });
    case Defect::hidden_keys_multiplied:
      return hidden_keys_share_a_tile(tiling);
    case Defect::scale_twice:
    case Defect::dq_unscaled:
    case Defect::dk_unscaled:
    case Defect::dk_scaled_twice:
      return tiling.problem().softmax_scale() != 1;
    case Defect::scale_in_bf16: {
      const float scale = static_cast<float>(tiling.problem().softmax_scale());
      return Planted(Defect::scale_in_bf16, flash_varlen::Type::bf16).score_scale(scale) != scale;
    }
    case Defect::backward_causal_one_late:
      return tiling.band_differs(defect, true);
    default:
      return tiling.band_differs(defect, false);
  }
}

bool forward_defect_shows(Defect defect, const Tiling& tiling) {
  switch (defect) {
    case Defect::stale_last_key:
      return tiling.any_query(sees_the_last_key);
    case Defect::key_row_duplicated:
      return tiling.any_tile(
          [](size_t sequence, Range, Range keys) { return sequence == 0 && keys.begin > 0 && keys.size() > 1; });
    case Defect::values_swizzled:
      return tiling.problem().d >= 16 &&
             tiling.any_tile([](size_t sequence, Range, Range keys) { return sequence == 0 && keys.size() > 3; });
    case Defect::value_columns_zero:
      return tiling.any_tile(
          [&](size_t sequence, Range, Range keys) { return tiling.is_last(sequence) && keys.end == tiling.lk(sequence); });
    case Defect::o_not_rescaled:
    case Defect::l_not_rescaled:
    case Defect::rescale_frame:
      return tiling.some_query_sees_two_tiles();
    case Defect::tail_unmasked:
      return tiling.any_tile([](size_t, Range, Range keys) { return keys.size() % kEdgeKeyBlock != 0; });
    default:
      return true;
  }
}

bool backward_defect_shows(Defect defect, const Tiling& tiling) {
  const int64_t lq = tiling.lq(0), last = (lq - 1) / kBackwardQueryBlock * kBackwardQueryBlock;
  const auto queries = [&](int64_t begin, int64_t end) { return tiling.queries_of_first_sequence(begin, end); };
  switch (defect) {
    case Defect::d_row_off_by_one:
    case Defect::lse_row_off_by_one:
      for (const Band& band : tiling.bands())
        for (int64_t query = kBackwardQueryBlock - 1; query < band.lq; query += kBackwardQueryBlock)
          if (!Tiling::keys_of(band, query).empty()) return true;
      return false;
    case Defect::dq_tile_lost:
    case Defect::dq_tile_twice:
    case Defect::dk_tile_twice:
      return tiling.see_two_keys(middle_queries(lq));
    case Defect::dq_fragment_lost:
      return tiling.see_two_keys(queries(0, kBackwardQueryBlock));
    case Defect::dq_element_lost: {
      const Range block = queries(0, kBackwardQueryBlock);
      return tiling.see_two_keys({std::max<int64_t>(block.end - 1, 0), block.end});
    }
    case Defect::dv_last_queries_lost: {
      const Range seen = lq > 0 ? tiling.bands().front().keys_of(queries(last, lq)) : Range{};
      return !seen.empty() && seen.begin < kBackwardKeyBlock;
    }
    case Defect::dk_dv_one_head:
      return tiling.problem().group() > 1;
    case Defect::dout_strides_ignored:
      return false;  // see below
    case Defect::unseen_keys_unwritten:
    case Defect::unseen_keys_stale:
      return some_key_tile_is_unseen(tiling);
    default:
      return true;
  }
}

/// What it rounds is rounded to the dtype.
bool only_rounds(Defect defect) {
  switch (defect) {
    case Defect::scores_rounded:
    case Defect::l_from_rounded_p:
    case Defect::p_truncated:
    case Defect::o_accumulator_rounded:
    case Defect::o_truncated:
    case Defect::lse_rounded:
    case Defect::d_rounded:
    case Defect::d_from_rounded_products:
    case Defect::backward_p_truncated:
    case Defect::dp_rounded:
    case Defect::ds_from_rounded:
    case Defect::ds_truncated:
    case Defect::dq_accumulator_rounded:
    case Defect::dk_dv_accumulators_rounded:
    case Defect::dq_truncated:
      return true;
    default:
      return false;
  }
}

bool is_mask_defect(Defect defect) {
  return defect <= Defect::scale_in_bf16 || defect == Defect::backward_causal_one_late || defect == Defect::dq_unscaled ||
         defect == Defect::dk_unscaled || defect == Defect::dk_scaled_twice;
}

}  // namespace

std::string why_equivalent(Defect defect, const Case& c) {
  const Tiling tiling(c);
  if (!tiling.any_query([](const Band&, Range keys) { return !keys.empty(); })) return "no query sees a key";
  if (only_rounds(defect) && c.problem.dtype == Dtype::fp32) return "fp32 is what the kernel computes in";
  if (defect == Defect::p_subnormals_flushed && c.problem.dtype != Dtype::fp16) return "only fp16 has so few exponents";
  if (defect == Defect::dout_strides_ignored) {
    const bool strided = c.strides == Strides::transposed || c.strides == Strides::dout_transposed || c.strides == Strides::far;
    const bool contiguous = c.problem.layout == Layout::padded || !strided;
    return contiguous ? "the kernel gets a contiguous dO" : "";
  }
  if (is_mask_defect(defect)) return mask_defect_shows(defect, tiling) ? "" : "shape and mask never reach it";
  const bool shows = forward_defect_shows(defect, tiling) && backward_defect_shows(defect, tiling);
  return shows ? "" : "no tile of this shape and mask has it";
}

}  // namespace attnbench
