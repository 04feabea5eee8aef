// Attention forward: O = softmax(scale Q K^T) V and LSE, with the online softmax of FlashAttention-2 (section 3.1).
//
// A task is one (sequence, query head, block of kQueryBlock queries); tasks go longest first to whichever worker is
// free, and a task is computed by one worker in a fixed order, so results do not depend on the number of workers.
// For each block of kKeyBlock keys that some query of the task sees:
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
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/band.hpp"
#include "kernels/cpu/exp.hpp"
#include "kernels/cpu/micro_kernel.hpp"
#include "kernels/cpu/shape.hpp"
#include "kernels/cpu/tiles.hpp"
#include "kernels/cpu/work_list.hpp"
#include "kernels/flash_varlen.hpp"

namespace attnbench::flash_varlen {
namespace cpu {
namespace {

constexpr int64_t kQueryBlock = 256;
constexpr int64_t kKeyBlock = 128;
constexpr int64_t kEdgeKeyBlock = 64;  // where the mask cuts through the block: less is computed in vain
constexpr float kInfinity = std::numeric_limits<float>::infinity();

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
      : Qt(arena.take_tile(d, kQueryBlock)),
        K(arena.take_tile(kKeyBlock, d)),
        V(arena.take_tile(kKeyBlock, d)),
        St(arena.take_tile(kKeyBlock, kQueryBlock)),
        O(arena.take_tile(kQueryBlock, d)),
        m(arena.take<float>(kQueryBlock)),
        l(arena.take<float>(kQueryBlock)),
        alpha(arena.take<float>(kQueryBlock)) {}
};

struct ForwardTask {
  int64_t sequence = 0;
  Range queries;
  int64_t cost = 0;  // scores to compute
};

/// Sets the scores that the mask hides to -inf; St[0][0] belongs to key keys.begin and query first_query.
void hide(const Band& band, Tile St, Range keys, int64_t first_query, int64_t queries) {
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
void softmax_step(Tile St, int64_t keys, float* m, float* l, float* alpha) {
  constexpr int64_t kChains = 4;
  const int64_t full = keys / kChains * kChains;
  const Float old_max = load(m);
  Float maxima[kChains] = {old_max, old_max, old_max, old_max};
  for (int64_t key = 0; key < full; key += kChains) {
#pragma GCC unroll 4
    for (int64_t chain = 0; chain < kChains; ++chain) maxima[chain] = max(load(St.row(key + chain)), maxima[chain]);
  }
  for (int64_t key = full; key < keys; ++key) maxima[0] = max(load(St.row(key)), maxima[0]);
  const Float new_max = max(max(maxima[0], maxima[1]), max(maxima[2], maxima[3]));
  // A query that has seen no key yet: any finite number in place of its maximum makes exp(-inf - max) = 0.
  const Float shift = new_max == -kInfinity ? Float{} : new_max;
  const auto exponentiate = [&](int64_t key) {
    const Float p = exp(load(St.row(key)) - shift);
    store(St.row(key), p);
    return p;
  };
  Float sums[kChains] = {};
  for (int64_t key = 0; key < full; key += kChains) {
#pragma GCC unroll 4
    for (int64_t chain = 0; chain < kChains; ++chain) sums[chain] += exponentiate(key + chain);
  }
  for (int64_t key = full; key < keys; ++key) sums[0] += exponentiate(key);
  const Float factor = exp(old_max - shift);
  store(m, new_max);
  store(alpha, factor);
  store(l, load(l) * factor + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
}

/// Adds one block of keys to m, l and O of the task's queries.
void add_keys(const Forward& args, const Sequence& sequence, const Band& band, int64_t head, Range queries, Range keys,
              const ForwardTiles& tiles) {
  const Shape& shape = args.shape;
  const int64_t kv_head = head / (shape.hq / shape.hkv);
  const Range seen_by = intersect(band.queries_of(keys), queries);
  const int64_t first = (seen_by.begin - queries.begin) / kLanes * kLanes;
  const int64_t count = seen_by.end - queries.begin - first;
  const Tile St = tiles.St.from(0, first);
  load_rows(shape, args.k, sequence.first_k + keys.begin, keys.size(), kv_head, 1, tiles.K);
  multiply<Left::plain, Start::zero>(tiles.K, tiles.Qt.from(0, first), St, keys.size(), count, shape.d);
  const int64_t first_query = queries.begin + first;
  if (!band.all_visible({first_query, seen_by.end}, keys)) hide(band, St, keys, first_query, count);
  for (int64_t query = 0; query < count; query += kLanes) {
    const int64_t at = first + query;
    softmax_step(tiles.St.from(0, at), keys.size(), tiles.m + at, tiles.l + at, tiles.alpha + at);
  }
  load_rows(shape, args.v, sequence.first_k + keys.begin, keys.size(), kv_head, 1, tiles.V);
  multiply<Left::transposed, Start::scale>(St, tiles.V, tiles.O.from(first, 0), count, shape.d, keys.size(), tiles.alpha + first);
}

void finish(const Forward& args, int64_t first_token, int64_t queries, int64_t head, const ForwardTiles& tiles) {
  const Shape& shape = args.shape;
  for (int64_t query = 0; query < queries; ++query) {
    const bool empty = tiles.m[query] == -kInfinity;
    const float inverse = empty ? 0 : 1 / tiles.l[query];
    store_rows(shape, tiles.O.from(query, 0), 1, inverse, args.o, first_token + query, head);
    args.lse[(first_token + query) * shape.hq + head] = empty ? -kInfinity : tiles.m[query] + std::log(tiles.l[query]);
  }
}

void compute(const Forward& args, const ForwardTask& task, int64_t head, const ForwardTiles& tiles) {
  const Shape& shape = args.shape;
  const Sequence sequence = sequence_of(shape, task.sequence);
  const Band band = band_of(shape, sequence.lq, sequence.lk);
  const Range queries = task.queries;
  load_rows(shape, args.q, sequence.first_q + queries.begin, queries.size(), head, shape.scale, tiles.O);
  transpose(tiles.O, queries.size(), shape.d, tiles.Qt);
  clear(tiles.O, queries.size(), shape.d);
  std::fill_n(tiles.m, kQueryBlock, -kInfinity);
  std::fill_n(tiles.l, kQueryBlock, 0.f);
  const Range visible = band.keys_of(queries);
  Range keys = {visible.begin, visible.begin};
  while (keys.end < visible.end) {
    keys = intersect({keys.end, keys.end + kKeyBlock}, visible);
    if (!band.all_visible(queries, keys)) keys.end = std::min(keys.end, keys.begin + kEdgeKeyBlock);
    add_keys(args, sequence, band, head, queries, keys, tiles);
  }
  finish(args, sequence.first_q + queries.begin, queries.size(), head, tiles);
}

std::vector<ForwardTask> forward_tasks(const Shape& shape) {
  std::vector<ForwardTask> tasks;
  for (int64_t index = 0; index < shape.sequences; ++index) {
    const Sequence sequence = sequence_of(shape, index);
    const Band band = band_of(shape, sequence.lq, sequence.lk);
    for (int64_t query = 0; query < sequence.lq; query += kQueryBlock) {
      const Range queries = {query, std::min(query + kQueryBlock, sequence.lq)};
      tasks.push_back({index, queries, queries.size() * band.keys_of(queries).size()});
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const ForwardTask& a, const ForwardTask& b) { return a.cost > b.cost; });
  return tasks;
}

}  // namespace
}  // namespace cpu

size_t forward_cpu_workspace_bytes(const Shape& shape, int workers) {
  cpu::check_shape(shape, workers);
  cpu::Arena arena;
  for (int worker = 0; worker < workers; ++worker) cpu::ForwardTiles(arena, shape.d);
  return arena.used();
}

void forward_cpu(const Forward& args, void* workspace, int workers, const ParallelFor& parallel) {
  const Shape& shape = args.shape;
  cpu::check_shape(shape, workers);
  cpu::check_workspace(workspace);
  cpu::Arena arena(workspace);
  std::vector<cpu::ForwardTiles> tiles;
  for (int worker = 0; worker < workers; ++worker) tiles.emplace_back(arena, shape.d);
  const auto tasks = cpu::forward_tasks(shape);
  cpu::work_off(tasks.size() * shape.hq, workers, parallel, [&](int64_t number, int worker) {
    cpu::compute(args, tasks[number / shape.hq], number % shape.hq, tiles[worker]);
  });
}

}  // namespace attnbench::flash_varlen
