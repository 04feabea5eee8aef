// Attention backward: dQ, dK and dV from Q, K, V, O, dO and LSE, as in FlashAttention-2 (section 3.1.2).
//
// First, over (sequence, block of kQueryBlock queries): D = rowsum(dO o O). Then a task is one (sequence, key head,
// block of kKeyBlock keys): K, V, dK and dV stay with the worker while the blocks of queries that see one of the keys
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
#include <algorithm>
#include <atomic>
#include <thread>
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

constexpr int64_t kQueryBlock = 64;
constexpr int64_t kKeyBlock = 128;

/// What one worker needs, about 520 KB at d = 128.
struct BackwardTiles {
  Tile Kt, Vt;  // [d, keys]
  Tile K;       // [keys, d]
  Tile dK, dV;  // [keys, d]; dV holds V until Vt is made
  Tile Q, dO;   // [queries, d]; Q is scaled
  Tile P, dS;   // [queries, keys]; dS holds dP before

  BackwardTiles(Arena& arena, int64_t d)
      : Kt(arena.take_tile(d, kKeyBlock)),
        Vt(arena.take_tile(d, kKeyBlock)),
        K(arena.take_tile(kKeyBlock, d)),
        dK(arena.take_tile(kKeyBlock, d)),
        dV(arena.take_tile(kKeyBlock, d)),
        Q(arena.take_tile(kQueryBlock, d)),
        dO(arena.take_tile(kQueryBlock, d)),
        P(arena.take_tile(kQueryBlock, kKeyBlock)),
        dS(arena.take_tile(kQueryBlock, kKeyBlock)) {}
};

/// What the workers share: for each query head the tokens and blocks of all sequences, one after the other.
struct Shared {
  float* D;       // [hq, tokens]
  Tile dQ;        // [hq * tokens, d]
  int32_t* turn;  // [hq, blocks of queries]
  int64_t tokens = 0, query_blocks = 0;

  Shared(Arena& arena, const Shape& shape) : tokens(shape.cu_q[shape.sequences]) {
    for (int64_t index = 0; index < shape.sequences; ++index) {
      query_blocks += blocks(sequence_of(shape, index).lq, kQueryBlock);
    }
    D = arena.take<float>(shape.hq * tokens);
    dQ = {arena.take<float>(shape.hq * tokens * round_up(shape.d, 16)), round_up(shape.d, 16)};
    turn = arena.take<int32_t>(shape.hq * query_blocks);
  }
};

struct SequencePlan {
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

Range query_block(const Band& band, int64_t number) {
  return intersect({number * kQueryBlock, (number + 1) * kQueryBlock}, {0, band.lq});
}

/// The numbers of the blocks of keys that some of the queries see.
Range key_blocks_of(const Band& band, Range queries) {
  const Range keys = band.keys_of(queries);
  if (keys.empty()) return {};
  return {keys.begin / kKeyBlock, (keys.end - 1) / kKeyBlock + 1};
}

std::atomic_ref<int32_t> turn_of(const Shared& shared, const SequencePlan& plan, int64_t head, int64_t block) {
  return std::atomic_ref<int32_t>(shared.turn[head * shared.query_blocks + plan.first_query_block + block]);
}

/// D of one block of queries, all heads, and whose turn it is; queries that see no key get dQ = 0 here.
void prepare(const Backward& args, const QueryBlockTask& task, const Shared& shared, const BackwardTiles& tiles) {
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
      shared.D[head * shared.tokens + first_token + query] = sum(products);
    }
    turn_of(shared, plan, head, task.block).store(int32_t(key_blocks.begin), std::memory_order_relaxed);
  }
}

/// P = exp(S - LSE) and dS = P o (dP - D) in place of S and dP, 0 where the mask hides.
void softmax_gradient(const Backward& args, const SequencePlan& plan, int64_t head, Range queries, Range keys,
                      const Shared& shared, const BackwardTiles& tiles) {
  const bool all_visible = plan.band.all_visible(queries, keys);
  for (int64_t query = 0; query < queries.size(); ++query) {
    const int64_t token = plan.sequence.first_q + queries.begin + query;
    const Float LSE = broadcast(args.lse[token * args.shape.hq + head]);
    const Float D = broadcast(shared.D[head * shared.tokens + token]);
    const Range seen = plan.band.keys_of({queries.begin + query, queries.begin + query + 1});
    for (int64_t key = 0; key < keys.size(); key += kLanes) {
      float* const P_at = tiles.P.row(query) + key;
      float* const dS_at = tiles.dS.row(query) + key;
      Float P = exp(load(P_at) - LSE);
      Float dS = P * (load(dS_at) - D);
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
void add_to_dQ(const Backward& args, const SequencePlan& plan, const QueryBlock& block, int64_t key_block, Range queries, Tile K,
               int64_t keys, const Shared& shared, const BackwardTiles& tiles) {
  const Shape& shape = args.shape;
  const Range key_blocks = key_blocks_of(plan.band, block.queries);
  const int64_t first_token = plan.sequence.first_q + block.queries.begin;
  const Tile dQ = shared.dQ.from(block.head * shared.tokens + first_token, 0);
  auto turn = turn_of(shared, plan, block.head, block.number);
  while (turn.load(std::memory_order_acquire) != key_block) std::this_thread::yield();
  if (key_block == key_blocks.begin) clear(dQ, block.queries.size(), shape.d);
  multiply<Left::plain, Start::add>(tiles.dS, K, dQ.from(queries.begin - block.queries.begin, 0), queries.size(), shape.d, keys);
  if (key_block + 1 == key_blocks.end) {
    store_rows(shape, dQ, block.queries.size(), shape.scale, args.dq, first_token, block.head);
  }
  turn.store(int32_t(key_block + 1), std::memory_order_release);
}

/// What one block of queries of one head gives to dK, dV and dQ.
void add_queries(const Backward& args, const SequencePlan& plan, const QueryBlock& block, int64_t key_block, Range keys,
                 const Shared& shared, const BackwardTiles& tiles) {
  const Shape& shape = args.shape;
  const Range queries = intersect(plan.band.queries_of(keys), block.queries);
  const Range seen = intersect(plan.band.keys_of(queries), keys);
  const int64_t first = seen.begin - keys.begin;
  const int64_t m = queries.size(), n = seen.size();
  const int64_t first_token = plan.sequence.first_q + queries.begin;
  load_rows(shape, args.q, first_token, m, block.head, shape.scale, tiles.Q);
  load_rows(shape, args.dout, first_token, m, block.head, 1, tiles.dO);
  multiply<Left::plain, Start::zero>(tiles.Q, tiles.Kt.from(0, first), tiles.P, m, n, shape.d);
  multiply<Left::plain, Start::zero>(tiles.dO, tiles.Vt.from(0, first), tiles.dS, m, n, shape.d);
  softmax_gradient(args, plan, block.head, queries, seen, shared, tiles);
  multiply<Left::transposed, Start::add>(tiles.P, tiles.dO, tiles.dV.from(first, 0), n, shape.d, m);
  multiply<Left::transposed, Start::add>(tiles.dS, tiles.Q, tiles.dK.from(first, 0), n, shape.d, m);
  add_to_dQ(args, plan, block, key_block, queries, tiles.K.from(first, 0), n, shared, tiles);
}

void compute(const Backward& args, const KeyBlockTask& task, int64_t kv_head, const Shared& shared, const BackwardTiles& tiles) {
  const Shape& shape = args.shape;
  const SequencePlan& plan = *task.plan;
  const Range keys = intersect({task.block * kKeyBlock, (task.block + 1) * kKeyBlock}, {0, plan.band.lk});
  const int64_t first_token = plan.sequence.first_k + keys.begin;
  load_rows(shape, args.k, first_token, keys.size(), kv_head, 1, tiles.K);
  load_rows(shape, args.v, first_token, keys.size(), kv_head, 1, tiles.dV);
  transpose(tiles.K, keys.size(), shape.d, tiles.Kt);
  transpose(tiles.dV, keys.size(), shape.d, tiles.Vt);
  clear(tiles.dK, keys.size(), shape.d);
  clear(tiles.dV, keys.size(), shape.d);
  const Range seen_by = plan.band.queries_of(keys);
  const int64_t group = shape.hq / shape.hkv;
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int64_t number = seen_by.begin / kQueryBlock; number * kQueryBlock < seen_by.end; ++number) {
      add_queries(args, plan, {head, number, query_block(plan.band, number)}, task.block, keys, shared, tiles);
    }
  }
  store_rows(shape, tiles.dK, keys.size(), 1, args.dk, first_token, kv_head);
  store_rows(shape, tiles.dV, keys.size(), 1, args.dv, first_token, kv_head);
}

/// The sequences, those with the most scores first.
std::vector<SequencePlan> plan_sequences(const Shape& shape) {
  std::vector<SequencePlan> plans;
  int64_t query_blocks = 0;
  for (int64_t index = 0; index < shape.sequences; ++index) {
    const Sequence sequence = sequence_of(shape, index);
    plans.push_back({sequence, band_of(shape, sequence.lq, sequence.lk), query_blocks});
    query_blocks += blocks(sequence.lq, kQueryBlock);
  }
  std::stable_sort(plans.begin(), plans.end(), [](const SequencePlan& a, const SequencePlan& b) {
    return a.sequence.lq * a.sequence.lk > b.sequence.lq * b.sequence.lk;
  });
  return plans;
}

}  // namespace
}  // namespace cpu

size_t backward_cpu_workspace_bytes(const Shape& shape, int workers) {
  cpu::check_shape(shape, workers);
  cpu::Arena arena;
  cpu::Shared(arena, shape);
  for (int worker = 0; worker < workers; ++worker) cpu::BackwardTiles(arena, shape.d);
  return arena.used();
}

void backward_cpu(const Backward& args, void* workspace, int workers, const ParallelFor& parallel) {
  const Shape& shape = args.shape;
  cpu::check_shape(shape, workers);
  cpu::check_workspace(workspace);
  cpu::Arena arena(workspace);
  const cpu::Shared shared(arena, shape);
  std::vector<cpu::BackwardTiles> tiles;
  for (int worker = 0; worker < workers; ++worker) tiles.emplace_back(arena, shape.d);

  const auto plans = cpu::plan_sequences(shape);
  std::vector<cpu::QueryBlockTask> query_blocks;
  std::vector<cpu::KeyBlockTask> key_blocks;
  for (const auto& plan : plans) {
    for (int64_t i = 0; i < cpu::blocks(plan.band.lq, cpu::kQueryBlock); ++i) query_blocks.push_back({&plan, i});
    for (int64_t j = 0; j < cpu::blocks(plan.band.lk, cpu::kKeyBlock); ++j) key_blocks.push_back({&plan, j});
  }
  cpu::work_off(query_blocks.size(), workers, parallel,
                [&](int64_t number, int worker) { cpu::prepare(args, query_blocks[number], shared, tiles[worker]); });
  cpu::work_off(key_blocks.size() * shape.hkv, workers, parallel, [&](int64_t number, int worker) {
    cpu::compute(args, key_blocks[number / shape.hkv], number % shape.hkv, shared, tiles[worker]);
  });
}

}  // namespace attnbench::flash_varlen
