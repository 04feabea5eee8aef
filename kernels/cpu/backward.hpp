// Attention backward: dQ, dK and dV from Q, K, V, O, dO and LSE, as in FlashAttention-2 (section 3.1.2).
//
// First, over (sequence, block of kBackwardQueryBlock queries): D = rowsum(dO o O). Then a task is one (sequence, key head,
// block of kBackwardKeyBlock keys): K, V, dK and dV stay with the worker while the blocks of queries that see one of the keys
// pass by, for all query heads of the group:
//
//   S = scale Q K^T,  P = exp(S - LSE),  dP = dO V^T,  dS = P o (dP - D)     [queries, keys], 0 where the mask hides
//   dV += P^T dO,  dK += dS^T (scale Q)                                      [keys, d]
//   dQ += dS K                                                              [queries, d], in the workspace
//
// dQ is a sum over blocks of keys, hence over tasks. It is the same to the last bit for any number of workers: each
// (query head, block of queries) has a `turn`, the number of the block of keys whose part is to be added next, and a
// worker waits for its turn. Tasks are begun in ascending order of keys, so the one that is waited for has begun and
// waits, if at all, for an earlier one. The last block of keys rounds dQ and writes it.
//
// Invariants: of a (block of queries, block of keys) only the rectangle of queries and keys that see each other is
// loaded and computed. dK and dV are summed in ascending order of (head, query). P, dS and all sums are fp32.
//
// `variant` is asked wherever the self-test plants a defect: Sound (sound.hpp) answers with what is right and costs nothing.
#pragma once

#include <algorithm>
#include <atomic>
#include <thread>
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

/// What one worker needs, about 520 KB at d = 128.
struct BackwardTiles {
  Tile Kt, Vt;  // [d, keys]
  Tile K;       // [keys, d]
  Tile dK, dV;  // [keys, d]; dV holds V until Vt is made
  Tile Q, dO;   // [queries, d]; Q is scaled
  Tile P, dS;   // [queries, keys]; dS holds dP before

  BackwardTiles(Arena& arena, int64_t d)
      : Kt(arena.take_tile(d, kBackwardKeyBlock)),
        Vt(arena.take_tile(d, kBackwardKeyBlock)),
        K(arena.take_tile(kBackwardKeyBlock, d)),
        dK(arena.take_tile(kBackwardKeyBlock, d)),
        dV(arena.take_tile(kBackwardKeyBlock, d)),
        Q(arena.take_tile(kBackwardQueryBlock, d)),
        dO(arena.take_tile(kBackwardQueryBlock, d)),
        P(arena.take_tile(kBackwardQueryBlock, kBackwardKeyBlock)),
        dS(arena.take_tile(kBackwardQueryBlock, kBackwardKeyBlock)) {}
};

/// What the workers share: for each query head the tokens and blocks of all sequences, one after the other.
struct Shared {
  float* D;       // [hq, tokens]
  Tile dQ;        // [hq * tokens, d]
  int32_t* turn;  // [hq, blocks of queries]
  int64_t tokens = 0, query_blocks = 0;

  Shared(Arena& arena, const Shape& shape) : tokens(shape.cu_q[shape.sequences]) {
    for (int64_t index = 0; index < shape.sequences; ++index) {
      query_blocks += blocks(sequence_of(shape, index).lq, kBackwardQueryBlock);
    }
    D = arena.take<float>(shape.hq * tokens);
    dQ = {arena.take<float>(shape.hq * tokens * round_up(shape.d, 16)), round_up(shape.d, 16)};
    turn = arena.take<int32_t>(shape.hq * query_blocks);
  }
};

struct SequencePlan {
  int64_t index = 0;  // among the sequences
  Sequence sequence;
  Band band;
  int64_t first_query_block = 0;  // its number among the blocks of all sequences
};

struct QueryBlockTask {
  const SequencePlan* plan;
  int64_t block;
};

struct KeyBlockTask {
  const SequencePlan* plan;
  int64_t block;
};

/// A (query head, block of queries) seen from one block of keys.
struct QueryBlock {
  int64_t head = 0;
  int64_t number = 0;  // within the sequence
  Range queries;
};

inline Range query_block(const Band& band, int64_t number) {
  return intersect({number * kBackwardQueryBlock, (number + 1) * kBackwardQueryBlock}, {0, band.lq});
}

/// The numbers of the blocks that these queries lie in; an empty range, which may lie anywhere, lies in none.
inline Range blocks_of(Range queries) {
  if (queries.empty()) return {};
  return {queries.begin / kBackwardQueryBlock, (queries.end - 1) / kBackwardQueryBlock + 1};
}

/// The numbers of the blocks of keys that some of the queries see.
inline Range key_blocks_of(const Band& band, Range queries) {
  const Range keys = band.keys_of(queries);
  if (keys.empty()) return {};
  return {keys.begin / kBackwardKeyBlock, (keys.end - 1) / kBackwardKeyBlock + 1};
}

inline std::atomic_ref<int32_t> turn_of(const Shared& shared, const SequencePlan& plan, int64_t head, int64_t block) {
  return std::atomic_ref<int32_t>(shared.turn[head * shared.query_blocks + plan.first_query_block + block]);
}

/// D of one block of queries, all heads, and whose turn it is; queries that see no key get dQ = 0 here.
template <class Variant>
void prepare(const Variant& variant, const Backward& args, const QueryBlockTask& task, const Shared& shared,
             const BackwardTiles& tiles) {
  const Shape& shape = args.shape;
  const SequencePlan& plan = *task.plan;
  const Range queries = query_block(plan.band, task.block);
  const Range key_blocks = key_blocks_of(plan.band, queries);
  const int64_t first_token = plan.sequence.first_q + queries.begin;
  for (int64_t head = 0; head < shape.hq; ++head) {
    clear(tiles.Q, queries.size(), shape.d);
    clear(tiles.dO, queries.size(), shape.d);
    if (key_blocks.empty()) store_rows(shape, tiles.Q, queries.size(), 1, args.dq, first_token, head);
    load_rows(shape, args.o, first_token, queries.size(), head, 1, tiles.Q);
    load_rows(shape, args.dout, first_token, queries.size(), head, 1, tiles.dO);
    for (int64_t query = 0; query < queries.size(); ++query) {
      Float products{};
      for (int64_t x = 0; x < shape.d; x += kLanes) products += load(tiles.dO.row(query) + x) * load(tiles.Q.row(query) + x);
      shared.D[head * shared.tokens + first_token + query] =
          variant.row_sum(sum(products), tiles.dO.row(query), tiles.Q.row(query), shape.d);
    }
    turn_of(shared, plan, head, task.block).store(int32_t(key_blocks.begin), std::memory_order_relaxed);
  }
}

/// P = exp(S - LSE) and dS = P o (dP - D) in place of S and dP, 0 where the mask hides.
template <class Variant>
void softmax_gradient(const Variant& variant, const Backward& args, const SequencePlan& plan, int64_t head, Range queries,
                      Range keys, const Shared& shared, const BackwardTiles& tiles) {
  const bool all_visible = plan.band.all_visible(queries, keys);
  for (int64_t query = 0; query < queries.size(); ++query) {
    const int64_t token = plan.sequence.first_q + queries.begin + query;
    const int64_t lse_token = token + variant.lse_row_offset(queries.begin + query);
    const int64_t d_token = token + variant.d_row_offset(queries.begin + query);
    const Float LSE = broadcast(args.lse[lse_token * args.shape.hq + head]);
    const Float D = broadcast(shared.D[head * shared.tokens + d_token]);
    const Range seen = plan.band.keys_of({queries.begin + query, queries.begin + query + 1});
    for (int64_t key = 0; key < keys.size(); key += kLanes) {
      float* const P_at = tiles.P.row(query) + key;
      float* const dS_at = tiles.dS.row(query) + key;
      Float P = variant.backward_exp(load(P_at) - LSE);
      Float dS = variant.ds(P, load(dS_at), D);
      P = variant.backward_stored_p(P);
      if (!all_visible) {
        const Int visible = lanes_within(keys.begin + key, seen.begin, seen.end);
        P = visible ? P : Float{};
        dS = visible ? dS : Float{};
      }
      store(P_at, P);
      store(dS_at, dS);
    }
  }
}

/// dQ += dS K, when it is this block of keys' turn. `queries` and `keys` are the rectangle that dS covers.
template <class Variant>
void add_to_dQ(const Variant& variant, const Backward& args, const SequencePlan& plan, const QueryBlock& block, int64_t key_block,
               Range queries, Tile K, int64_t keys, const Shared& shared, const BackwardTiles& tiles) {
  const Shape& shape = args.shape;
  const Range key_blocks = key_blocks_of(plan.band, block.queries);
  const int64_t first_token = plan.sequence.first_q + block.queries.begin;
  const Tile dQ = shared.dQ.from(block.head * shared.tokens + first_token, 0);
  auto turn = turn_of(shared, plan, block.head, block.number);
  while (turn.load(std::memory_order_acquire) != key_block) std::this_thread::yield();
  if (key_block == key_blocks.begin) clear(dQ, block.queries.size(), shape.d);
  multiply<Left::plain, Start::add>(tiles.dS, K, dQ.from(queries.begin - block.queries.begin, 0), queries.size(), shape.d, keys);
  variant.dq_added(dQ.from(queries.begin - block.queries.begin, 0), tiles.dS, K, shape, {plan.index, block.head}, queries, keys,
                   key_block, key_blocks);
  if (key_block + 1 == key_blocks.end) {
    const float scale = variant.dq_scale(shape.scale);
    variant.stored(dQ, block.queries.size(), shape.d, scale);
    store_rows(shape, dQ, block.queries.size(), scale, args.dq, first_token, block.head);
  }
  turn.store(int32_t(key_block + 1), std::memory_order_release);
}

/// What one block of queries of one head gives to dK, dV and dQ.
template <class Variant>
void add_queries(const Variant& variant, const Backward& args, const SequencePlan& plan, const QueryBlock& block,
                 int64_t key_block, Range keys, const Shared& shared, const BackwardTiles& tiles) {
  const Shape& shape = args.shape;
  const Range queries = intersect(plan.band.queries_of(keys), block.queries);
  const Range seen = intersect(plan.band.keys_of(queries), keys);
  const int64_t first = seen.begin - keys.begin;
  const int64_t m = queries.size(), n = seen.size();
  const int64_t first_token = plan.sequence.first_q + queries.begin;
  load_rows(shape, args.q, first_token, m, block.head, variant.score_scale(shape.scale), tiles.Q);
  load_rows(shape, args.dout, first_token, m, block.head, 1, tiles.dO);
  multiply<Left::plain, Start::zero>(tiles.Q, tiles.Kt.from(0, first), tiles.P, m, n, shape.d);
  multiply<Left::plain, Start::zero>(tiles.dO, tiles.Vt.from(0, first), tiles.dS, m, n, shape.d);
  softmax_gradient(variant, args, plan, block.head, queries, seen, shared, tiles);
  const Place place{plan.index, block.head};
  variant.before_dv(tiles.P, place, plan.band, block.number, key_block, m, n);
  multiply<Left::transposed, Start::add>(tiles.P, tiles.dO, tiles.dV.from(first, 0), n, shape.d, m);
  variant.before_dk(tiles.dS, place, plan.band, block.number, key_block, m, n);
  multiply<Left::transposed, Start::add>(tiles.dS, tiles.Q, tiles.dK.from(first, 0), n, shape.d, m);
  variant.accumulated(tiles.dV.from(first, 0), n, shape.d);
  variant.accumulated(tiles.dK.from(first, 0), n, shape.d);
  variant.before_dq(tiles.dS, place, plan.band, block.number, key_block, m, n);
  add_to_dQ(variant, args, plan, block, key_block, queries, tiles.K.from(first, 0), n, shared, tiles);
}

template <class Variant>
void compute_backward(const Variant& variant, const Backward& args, const KeyBlockTask& task, int64_t kv_head,
                      const Shared& shared, const BackwardTiles& tiles) {
  const Shape& shape = args.shape;
  const SequencePlan& plan = *task.plan;
  const Range keys = intersect({task.block * kBackwardKeyBlock, (task.block + 1) * kBackwardKeyBlock}, {0, plan.band.lk});
  const int64_t first_token = plan.sequence.first_k + keys.begin;
  load_rows(shape, args.k, first_token, keys.size(), kv_head, 1, tiles.K);
  load_rows(shape, args.v, first_token, keys.size(), kv_head, 1, tiles.dV);
  transpose(tiles.K, keys.size(), shape.d, tiles.Kt);
  transpose(tiles.dV, keys.size(), shape.d, tiles.Vt);
  clear(tiles.dK, keys.size(), shape.d);
  clear(tiles.dV, keys.size(), shape.d);
  const Range seen_by = plan.band.queries_of(keys);
  if (seen_by.empty() && !variant.writes_unseen_keys()) return;
  if (seen_by.empty()) variant.unseen_keys(tiles.dK, keys.size(), shape.d);
  const Range query_blocks = blocks_of(seen_by);
  const int64_t group = shape.hq / shape.hkv;
  for (int64_t head = variant.first_head(kv_head * group, group); head < (kv_head + 1) * group; ++head) {
    for (int64_t number = query_blocks.begin; number < query_blocks.end; ++number) {
      add_queries(variant, args, plan, {head, number, query_block(plan.band, number)}, task.block, keys, shared, tiles);
    }
  }
  store_rows(shape, tiles.dK, keys.size(), variant.dk_factor(shape.scale), args.dk, first_token, kv_head);
  store_rows(shape, tiles.dV, keys.size(), variant.dv_factor(), args.dv, first_token, kv_head);
}

/// The sequences, those with the most scores first.
template <class Variant>
std::vector<SequencePlan> plan_sequences(const Variant& variant, const Shape& shape) {
  std::vector<SequencePlan> plans;
  int64_t query_blocks = 0;
  for (int64_t index = 0; index < shape.sequences; ++index) {
    const Sequence sequence = variant.sequence(shape, index);
    const Band band = variant.backward_band(shape, variant.band(shape, band_of(shape, sequence.lq, sequence.lk)));
    plans.push_back({index, sequence, band, query_blocks});
    query_blocks += blocks(sequence.lq, kBackwardQueryBlock);
  }
  std::stable_sort(plans.begin(), plans.end(), [](const SequencePlan& a, const SequencePlan& b) {
    return a.sequence.lq * a.sequence.lk > b.sequence.lq * b.sequence.lk;
  });
  return plans;
}

template <class Variant>
void run_backward(const Variant& variant, const Backward& asked, void* workspace, int workers, const ParallelFor& parallel) {
  const Shape& shape = asked.shape;
  check_shape(shape, workers);
  check_workspace(workspace);
  const Backward args = variant.arguments(asked);
  Arena arena(workspace);
  const Shared shared(arena, shape);
  std::vector<BackwardTiles> tiles;
  for (int worker = 0; worker < workers; ++worker) tiles.emplace_back(arena, shape.d);

  const auto plans = plan_sequences(variant, shape);
  std::vector<QueryBlockTask> query_blocks;
  std::vector<KeyBlockTask> key_blocks;
  for (const auto& plan : plans) {
    for (int64_t i = 0; i < blocks(plan.band.lq, kBackwardQueryBlock); ++i) query_blocks.push_back({&plan, i});
    for (int64_t j = 0; j < blocks(plan.band.lk, kBackwardKeyBlock); ++j) key_blocks.push_back({&plan, j});
  }
  work_off(query_blocks.size(), workers, parallel,
           [&](int64_t number, int worker) { prepare(variant, args, query_blocks[number], shared, tiles[worker]); });
  work_off(key_blocks.size() * shape.hkv, workers, parallel, [&](int64_t number, int worker) {
    compute_backward(variant, args, key_blocks[number / shape.hkv], number % shape.hkv, shared, tiles[worker]);
  });
}

}  // namespace cpu
}  // namespace attnbench::flash_varlen
