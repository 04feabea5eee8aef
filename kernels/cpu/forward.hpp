// Attention forward: O = softmax(scale Q K^T) V and LSE, with the online softmax of FlashAttention-2 (section 3.1).
//
// A task is one (sequence, query head, block of kForwardQueryBlock queries); tasks go longest first to whichever worker is
// free, and a task is computed by one worker in a fixed order, so results do not depend on the number of workers.
// For each block of kForwardKeyBlock keys that some query of the task sees:
//
//   S^T = K (scale Q)^T            [keys, queries], -inf where the mask hides
//   m'  = max(m, max_keys S^T),  alpha = exp(m - m'),  P^T = exp(S^T - m'),  l = alpha l + sum_keys P^T
//   O   = alpha O + P V            [queries, d]
//
// and at the end O / l and LSE = m + ln l. Scores are kept transposed: a lane is a query, so that max, sum and exp
// need nothing across lanes, K and V are used as they lie, and only Q is transposed, once a task.
//
// Invariants: only keys that some query of the task sees are loaded, and of a block of keys only those queries are
// computed (rounded down to whole vectors) that see one of its keys. A query's m is -inf until it has seen a key,
// and then its l and O are 0. P and all sums are fp32.
//
// `variant` is asked wherever the self-test plants a defect: Sound (sound.hpp) answers with what is right and costs nothing.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/band.hpp"
#include "kernels/cpu/exp.hpp"
#include "kernels/cpu/micro_kernel.hpp"
#include "kernels/cpu/shape.hpp"
#include "kernels/cpu/sound.hpp"
#include "kernels/cpu/tiles.hpp"
#include "kernels/cpu/tiling.hpp"
#include "kernels/cpu/work_list.hpp"
#include "kernels/flash_varlen.hpp"

namespace attnbench::flash_varlen {
namespace cpu {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// What one worker needs, about 570 KB at d = 128.
struct ForwardTiles {
  Tile Qt;       // [d, queries], scaled
  Tile K, V;     // [keys, d]
  Tile St;       // [keys, queries]: S^T, then P^T
  Tile O;        // [queries, d]; holds Q until Qt is made
  float* m;      // [queries]
  float* l;      // [queries]
  float* alpha;  // [queries]

  ForwardTiles(Arena& arena, int64_t d)
      : Qt(arena.take_tile(d, kForwardQueryBlock)),
        K(arena.take_tile(kForwardKeyBlock, d)),
        V(arena.take_tile(kForwardKeyBlock, d)),
        St(arena.take_tile(kForwardKeyBlock, kForwardQueryBlock)),
        O(arena.take_tile(kForwardQueryBlock, d)),
        m(arena.take<float>(kForwardQueryBlock)),
        l(arena.take<float>(kForwardQueryBlock)),
        alpha(arena.take<float>(kForwardQueryBlock)) {}
};

struct ForwardTask {
  int64_t sequence = 0;
  Range queries;
  int64_t cost = 0;  // scores to compute
};

/// Sets the scores that the mask hides to -inf; St[0][0] belongs to key keys.begin and query first_query.
inline void hide(const Band& band, Tile St, Range keys, int64_t first_query, int64_t queries) {
  for (int64_t key = 0; key < keys.size(); ++key) {
    const Range seen_by = band.queries_of({keys.begin + key, keys.begin + key + 1});
    for (int64_t query = 0; query < queries; query += kLanes) {
      float* scores = St.row(key) + query;
      const Int visible = lanes_within(first_query + query, seen_by.begin, seen_by.end);
      store(scores, visible ? load(scores) : broadcast(-kInfinity));
    }
  }
}

/// One step of the online softmax for kLanes queries: St [keys, kLanes] becomes P^T, and m, l, alpha follow.
/// Maxima and sums run in kChains chains: more of them are under way at once, and rounding errors are smaller.
template <class Variant>
void softmax_step(const Variant& variant, Tile St, int64_t keys, float* m, float* l, float* alpha) {
  constexpr int64_t kChains = 4;
  const int64_t full = keys / kChains * kChains;
  const Float old_max = load(m);
  Float maxima[kChains] = {old_max, old_max, old_max, old_max};
  for (int64_t key = 0; key < full; key += kChains) {
#pragma GCC unroll 4
    for (int64_t chain = 0; chain < kChains; ++chain) maxima[chain] = max(load(St.row(key + chain)), maxima[chain]);
  }
  for (int64_t key = full; key < keys; ++key) maxima[0] = max(load(St.row(key)), maxima[0]);
  const Float new_max = variant.maximum(max(max(maxima[0], maxima[1]), max(maxima[2], maxima[3])), keys);
  // A query that has seen no key yet: any finite number in place of its maximum makes exp(-inf - max) = 0.
  const Float shift = new_max == -kInfinity ? Float{} : new_max;
  const auto exponentiate = [&](int64_t key) {
    const Float p = variant.exp(load(St.row(key)) - shift);
    store(St.row(key), variant.stored_p(p));
    return variant.summed_p(p);
  };
  Float sums[kChains] = {};
  for (int64_t key = 0; key < full; key += kChains) {
#pragma GCC unroll 4
    for (int64_t chain = 0; chain < kChains; ++chain) sums[chain] += exponentiate(key + chain);
  }
  for (int64_t key = full; key < keys; ++key) sums[0] += exponentiate(key);
  const Rescale rescale = variant.rescale({new_max, variant.exp(old_max - shift)}, old_max);
  store(m, rescale.maximum);
  store(alpha, rescale.o);
  store(l, load(l) * rescale.l + variant.sum((sums[0] + sums[1]) + (sums[2] + sums[3]), shift, keys));
}

/// Adds one block of keys to m, l and O of the task's queries.
template <class Variant>
void add_keys(const Variant& variant, const Forward& args, const Place& place, const Sequence& sequence, const Band& band,
              Range queries, Range keys, const ForwardTiles& tiles) {
  const Shape& shape = args.shape;
  const int64_t kv_head = variant.key_head(shape, place.head);
  const Range seen_by = intersect(band.queries_of(keys), queries);
  const int64_t first = (seen_by.begin - queries.begin) / kLanes * kLanes;
  const int64_t count = seen_by.end - queries.begin - first;
  const Tile St = tiles.St.from(0, first);
  load_rows(shape, args.k, sequence.first_k + keys.begin, keys.size(), kv_head, 1, tiles.K);
  variant.keys_loaded(tiles.K, shape, place, sequence, keys);
  multiply<Left::plain, Start::zero>(tiles.K, tiles.Qt.from(0, first), St, keys.size(), count, variant.depth(shape.d));
  variant.scores_computed(St, keys.size(), count);
  const int64_t first_query = queries.begin + first;
  // The softmax takes whole groups of kLanes: queries behind the last one that sees a key take part in it, and must not see it.
  const int64_t last_lane = std::min((count + kLanes - 1) / kLanes * kLanes, queries.size() - first);
  if (!band.all_visible({first_query, first_query + last_lane}, keys)) hide(band, St, keys, first_query, count);
  for (int64_t query = 0; query < count; query += kLanes) {
    const int64_t at = first + query;
    softmax_step(variant, tiles.St.from(0, at), keys.size(), tiles.m + at, tiles.l + at, tiles.alpha + at);
  }
  load_rows(shape, args.v, sequence.first_k + keys.begin, keys.size(), kv_head, 1, tiles.V);
  variant.values_loaded(tiles.V, shape, place, sequence, keys);
  multiply<Left::transposed, Start::scale>(St, tiles.V, tiles.O.from(first, 0), count, shape.d, keys.size(), tiles.alpha + first);
  variant.accumulated(tiles.O.from(first, 0), count, shape.d);
}

template <class Variant>
void finish(const Variant& variant, const Forward& args, const Place& place, int64_t first_token, int64_t queries,
            const ForwardTiles& tiles) {
  const Shape& shape = args.shape;
  for (int64_t query = 0; query < queries; ++query) {
    const bool empty = tiles.m[query] == -kInfinity;
    const float inverse = empty ? 0 : 1 / tiles.l[query];
    const int64_t token = first_token + query;
    args.lse[token * shape.hq + place.head] = empty ? -kInfinity : variant.lse(tiles.m[query], tiles.l[query], place, token);
    const auto row = variant.finished(tiles.O.row(query), inverse, shape, place, token);
    if (row.written) store_rows(shape, tiles.O.from(query, 0), 1, row.factor, args.o, token, place.head);
  }
}

template <class Variant>
void compute_forward(const Variant& variant, const Forward& args, const ForwardTask& task, int64_t head,
                     const ForwardTiles& tiles) {
  const Shape& shape = args.shape;
  const Place place{task.sequence, head};
  const Sequence sequence = variant.sequence(shape, task.sequence);
  const Band band = variant.band(shape, band_of(shape, sequence.lq, sequence.lk));
  const Range queries = task.queries;
  load_rows(shape, args.q, sequence.first_q + queries.begin, queries.size(), head, variant.score_scale(shape.scale), tiles.O);
  transpose(tiles.O, queries.size(), shape.d, tiles.Qt);
  clear(tiles.O, queries.size(), shape.d);
  std::fill_n(tiles.m, kForwardQueryBlock, -kInfinity);
  std::fill_n(tiles.l, kForwardQueryBlock, 0.f);
  const Range visible = variant.visited(shape, place, band, band.keys_of(queries));
  for (Range keys = {visible.begin, visible.begin}; keys.end < visible.end;) {
    keys = forward_key_tile(band, queries, visible, keys.end);
    add_keys(variant, args, place, sequence, band, queries, keys, tiles);
  }
  finish(variant, args, place, sequence.first_q + queries.begin, queries.size(), tiles);
}

inline std::vector<ForwardTask> forward_tasks(const Shape& shape) {
  std::vector<ForwardTask> tasks;
  for (int64_t index = 0; index < shape.sequences; ++index) {
    const Sequence sequence = sequence_of(shape, index);
    const Band band = band_of(shape, sequence.lq, sequence.lk);
    for (int64_t query = 0; query < sequence.lq; query += kForwardQueryBlock) {
      const Range queries = {query, std::min(query + kForwardQueryBlock, sequence.lq)};
      tasks.push_back({index, queries, queries.size() * band.keys_of(queries).size()});
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const ForwardTask& a, const ForwardTask& b) { return a.cost > b.cost; });
  return tasks;
}

template <class Variant>
void run_forward(const Variant& variant, const Forward& args, void* workspace, int workers, const ParallelFor& parallel) {
  const Shape& shape = args.shape;
  check_shape(shape, workers);
  check_workspace(workspace);
  Arena arena(workspace);
  std::vector<ForwardTiles> tiles;
  for (int worker = 0; worker < workers; ++worker) tiles.emplace_back(arena, shape.d);
  const auto tasks = forward_tasks(shape);
  work_off(tasks.size() * shape.hq, workers, parallel, [&](int64_t number, int worker) {
    compute_forward(variant, args, tasks[number / shape.hq], number % shape.hq, tiles[worker]);
  });
}

}  // namespace cpu
}  // namespace attnbench::flash_varlen
