#include "backends/attention/flash_varlen_equivalence.hpp"

#include <cmath>
#include <functional>
#include <numeric>
#include <vector>

#include "kernels/cpu/planted.hpp"
#include "kernels/cpu/tiling.hpp"
#include "kernels/sm80/tiling.hpp"

namespace attnbench {
namespace {

using flash_varlen::Defect;
using namespace flash_varlen::cpu;
namespace sm80 = flash_varlen::sm80;

static_assert(kBackwardQueryBlock == sm80::kBackwardQueryBlock);
static_assert(kEdgeKeyBlock == sm80::kForwardKeyBlock);

/// Shape and bands of a case, as the kernels see them.
class Tiling {
 public:
  Tiling(const Case& c, Kernels kernels)
      : problem_(c.problem), lengths_(sequence_lengths(c.problem, c.seed)), on_gpu_(kernels == Kernels::cuda) {
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
  int64_t keys_before(size_t sequence) const {
    return std::accumulate(lengths_.k.begin(), lengths_.k.begin() + static_cast<int64_t>(sequence), int64_t{0});
  }
  bool on_gpu() const { return on_gpu_; }
  int64_t backward_key_block() const {
    return on_gpu_ ? sm80::planted_backward_key_block(problem_.d) : flash_varlen::cpu::kBackwardKeyBlock;
  }
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
  /// The keys of the tiles that the forward visits for a block of queries: on a GPU from a multiple of the tile on, and perhaps a
  /// tile of which no query sees a key.
  Range visited(const Band& band, Range queries) const {
    if (!on_gpu_) return band.keys_of(queries);
    const int64_t first = std::max<int64_t>(queries.begin + band.first, 0) / sm80::kForwardKeyBlock * sm80::kForwardKeyBlock;
    return {first, std::max(first, std::clamp<int64_t>(queries.end + band.last, 0, band.lk))};
  }
  /// Some tile of the forward fulfils it: (sequence, its queries, its keys). A tile ends with the last visible key, on a GPU with
  /// the last key.
  bool any_tile(const std::function<bool(size_t, Range, Range)>& fulfils) const {
    const int64_t block = on_gpu_ ? sm80::kForwardQueryBlock : flash_varlen::cpu::kForwardQueryBlock;
    for (size_t sequence = 0; sequence < bands_.size(); ++sequence) {
      const Band& band = bands_[sequence];
      for (int64_t first = 0; first < band.lq; first += block) {
        const Range queries = intersect({first, first + block}, {0, band.lq}), all = visited(band, queries);
        for (Range keys{all.begin, all.begin}; keys.end < all.end;) {
          keys = on_gpu_ ? intersect({keys.end, keys.end + sm80::kForwardKeyBlock}, {0, band.lk})
                         : forward_key_tile(band, queries, all, keys.end);
          if (fulfils(sequence, queries, keys)) return true;
        }
      }
    }
    return false;
  }
  /// Some of these queries sees one of these keys.
  bool sees(size_t sequence, Range queries, Range keys) const {
    return !keys.empty() && !intersect(bands_[sequence].queries_of(keys), queries).empty();
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
  /// Of the first sequence: some of these queries, which lie in the first block, sees two keys or more, one of them in the first
  /// block of keys that its block of queries sees.
  bool see_the_first_key_block(Range queries) const {
    const Band& band = bands_.front();
    const Range block = queries_of_first_sequence(0, sm80::kBackwardQueryBlock);
    if (block.empty()) return false;
    const int64_t end = (band.keys_of(block).begin / backward_key_block() + 1) * backward_key_block();
    for (int64_t query = queries.begin; query < queries.end; ++query)
      if (const Range seen = keys_of(band, query); seen.size() >= 2 && seen.begin < end) return true;
    return false;
  }
  /// The CUDA kernels: the blocks of queries that are multiplied with a block of keys.
  Range query_blocks(const Band& band, Range keys) const {
    const int64_t first = std::max<int64_t>(keys.begin - band.last, 0) / sm80::kBackwardQueryBlock;
    const int64_t end = std::clamp<int64_t>(keys.end - band.first, 0, band.lq);
    return {first, std::max(first, (end + sm80::kBackwardQueryBlock - 1) / sm80::kBackwardQueryBlock)};
  }
  Range key_block(const Band& band, int64_t begin) const {
    return intersect({begin, begin + backward_key_block()}, {0, band.lk});
  }

 private:
  Problem problem_;
  SequenceLengths lengths_;
  bool on_gpu_;
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

bool some_key_is_hidden(const Tiling& tiling) {
  for (const Band& band : tiling.bands())
    if (band.lq > 0 && band.keys_of({0, band.lq}).size() < band.lk) return true;
  return false;
}

/// The kernel leaves out some block of keys since no query sees it.
bool some_key_tile_is_unseen(const Tiling& tiling) {
  for (const Band& band : tiling.bands())
    for (int64_t key = 0; key < band.lk; key += tiling.backward_key_block()) {
      const Range keys = tiling.key_block(band, key);
      if (tiling.on_gpu() ? tiling.query_blocks(band, keys).empty() : band.queries_of(keys).empty()) return true;
    }
  return false;
}

/// Two blocks of keys or more add to dQ of the last block of queries of the first sequence, and some of its first `rows` queries
/// sees two keys or more.
bool is_added_up(const Tiling& tiling, int64_t rows) {
  const Band& band = tiling.bands().front();
  if (band.lq == 0) return false;
  const int64_t last = (band.lq - 1) / sm80::kBackwardQueryBlock, first_query = last * sm80::kBackwardQueryBlock;
  int adding = 0;
  for (int64_t key = 0; key < band.lk; key += tiling.backward_key_block()) {
    const Range blocks = tiling.query_blocks(band, tiling.key_block(band, key));
    if (blocks.begin <= last && last < blocks.end) ++adding;
  }
  return adding >= 2 && tiling.see_two_keys(tiling.queries_of_first_sequence(first_query, first_query + rows));
}

/// The defect of this group can show.
bool mask_defect_shows(Defect defect, const Tiling& tiling) {
  switch (defect) {
    case Defect::key_head_modulo:
      return tiling.problem().group() > 1 && tiling.problem().hkv > 1;
    case Defect::cu_seqlens_off_by_one:
      for (size_t i = 1; i < tiling.bands().size(); ++i)
        if (tiling.keys_before(i) > 0 && tiling.lq(i) > 0 && !tiling.bands()[i].keys_of({0, tiling.lq(i)}).empty()) return true;
      return false;
    case Defect::next_key_read:
      for (size_t i = 0; i + 1 < tiling.bands().size(); ++i) {
        Band wider = tiling.bands()[i];
        ++wider.lk;
        const bool is_there = tiling.keys_before(i + 1) < tiling.keys_before(tiling.bands().size());
        if (is_there && wider.lq > 0 && wider.keys_of({0, wider.lq}).end == wider.lk) return true;
      }
      return false;
    case Defect::last_key_dropped:
      return tiling.any_query(sees_the_last_key);
    case Defect::first_key_tile_skipped:
      return tiling.any_tile([&](size_t sequence, Range queries, Range) {
        return tiling.is_last(sequence) && tiling.visited(tiling.bands()[sequence], queries).size() > kEdgeKeyBlock;
      });
    case Defect::last_key_tile_skipped:
      return tiling.any_tile([&](size_t sequence, Range queries, Range) {
        const Range visible = tiling.visited(tiling.bands()[sequence], queries);
        return visible.end % kEdgeKeyBlock != 0 && visible.end / kEdgeKeyBlock * kEdgeKeyBlock > visible.begin;
      });
    case Defect::hidden_keys_multiplied:
      return tiling.on_gpu() ? some_key_is_hidden(tiling) : hidden_keys_share_a_tile(tiling);
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
      return tiling.any_tile([&](size_t sequence, Range queries, Range keys) {
        const Range first{keys.begin, keys.begin + 1};
        return sequence == 0 && keys.begin > 0 && keys.size() > 1 && tiling.sees(sequence, queries, first);
      });
    case Defect::values_swizzled:
      return tiling.problem().d >= 16 && tiling.any_tile([&](size_t sequence, Range queries, Range keys) {
        const Range fourth{keys.begin + 3, keys.begin + 4};
        return sequence == 0 && keys.size() > 3 && tiling.sees(sequence, queries, fourth);
      });
    case Defect::value_columns_zero:
      return tiling.any_tile([&](size_t sequence, Range queries, Range keys) {
        return tiling.is_last(sequence) && keys.end == tiling.lk(sequence) && tiling.sees(sequence, queries, keys);
      });
    case Defect::o_not_rescaled:
    case Defect::l_not_rescaled:
    case Defect::rescale_frame:
      return tiling.some_query_sees_two_tiles();
    case Defect::lse_element_off:
      for (const Band& band : tiling.bands())
        if (band.lq > 0) return !Tiling::keys_of(band, 0).empty();
      return false;
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
    case Defect::dq_fragment_lost: {
      const Range block = queries(0, kBackwardQueryBlock);
      return tiling.on_gpu() ? tiling.see_the_first_key_block({std::max<int64_t>(block.end - 16, 0), block.end})
                             : tiling.see_two_keys(block);
    }
    case Defect::dq_element_lost: {
      const Range block = queries(0, kBackwardQueryBlock), last{std::max<int64_t>(block.end - 1, 0), block.end};
      return tiling.on_gpu() ? tiling.see_the_first_key_block(last) : tiling.see_two_keys(last);
    }
    case Defect::dq_fragment_racy:
      return is_added_up(tiling, 16);
    case Defect::dq_element_racy:
      return is_added_up(tiling, 1);
    case Defect::dv_last_queries_lost: {
      const Range seen = lq > 0 ? tiling.bands().front().keys_of(queries(last, lq)) : Range{};
      return !seen.empty() && seen.begin < tiling.backward_key_block();
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

/// It can show where every result is 0.
bool shows_in_zeros(Defect defect) {
  switch (defect) {
    case Defect::causal_one_late:
    case Defect::backward_causal_one_late:
    case Defect::other_corner:
    case Defect::window_one_wider:
    case Defect::next_key_read:
    case Defect::hidden_keys_multiplied:
    case Defect::tail_unmasked:
    case Defect::last_row_unwritten:
    case Defect::unseen_keys_unwritten:
    case Defect::unseen_keys_stale:
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

std::string why_equivalent(Defect defect, const Case& c, Kernels kernels) {
  const Tiling tiling(c, kernels);
  const bool some_key_is_seen = tiling.any_query([](const Band&, Range keys) { return !keys.empty(); });
  if (!some_key_is_seen && !shows_in_zeros(defect)) return "no query sees a key";
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
