// One batch of the emulator: attention in the precision of a profile, in blocks of query rows against all keys that they read,
// all heads at once, in LibTorch operations on any device. fp32 arithmetic, rounding where the profile says.
// O from P
//   normalised: of the softmax itself;
//   else: of P that are relative, by tiles of 64 keys, to the row's maximum up to that tile, where they are rounded.
// Gradients from the softmax itself, where P is normalised or D comes from P o dP; else from exp(S - L).
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "harness/attention/error_model.hpp"

namespace attnbench::emulation {

using at::Tensor;

inline constexpr int64_t kTile = 64;
inline int64_t tiles_of(int64_t keys) {
  return (keys + kTile - 1) / kTile;
}

/// The keys [begin, end) of its sequence that a query reads. filled: it sees none, and reads all as if they were equal.
struct Reads {
  int64_t begin = 0, end = 0;
  bool filled = false;
};

struct Sequence {
  std::vector<int64_t> q_rows, k_rows;  ///< storage rows; k_rows: real keys, then the padding that uniform empty rows read
  int64_t number = 0, real_keys = 0;
  std::vector<Reads> reads;  ///< by query

  int64_t queries() const { return static_cast<int64_t>(q_rows.size()); }
  int64_t keys() const { return static_cast<int64_t>(k_rows.size()); }
  void find_reads(const Problem& problem, Conventions::EmptyRow empty_row);
  /// Nobody reads the others, which may hold anything.
  std::pair<int64_t, int64_t> keys_read() const;
};

/// What the arithmetic of a case is like.
struct Arithmetic {
  Rounding rounding;
  double scale = 0;
  double filler = 0;  ///< score of the keys of a filled row: 0, or NaN
  at::ScalarType dtype = at::kFloat;
  /// Of rounded values in a product, but for P by tiles, which are rescaled in fp32: the tensor cores' dtype; on a CPU fp32.
  at::ScalarType operand = at::kFloat;
};

/// Softcap, ALiBi, sinks and dropout of the batch's query heads, in fp32 and never rounded further.
struct ScoreOptions {
  double softcap = 0;
  Tensor slopes, sinks;  ///< [1, heads, 1, 1]; undefined: none
  Tensor offsets;        ///< [sequences, 1, 1, 1]: where each diagonal starts
  Tensor factors;        ///< fp32 [sequences x heads, queries, keys]: what dropout multiplies P by; undefined: nothing
};

/// Attention of Q, G [sequences x heads, queries, channels] and K, V [sequences x heads, keys, channels], in which each sequence
/// is padded with zeros to the longest, its keys to whole tiles.
class Batch {
 public:
  Batch(const Arithmetic& arithmetic, const ScoreOptions& options, const std::vector<Sequence>& sequences, Tensor Q, Tensor K,
        Tensor V, Tensor G);  ///< arithmetic and options outlive it
  void run();                 ///< once

  Tensor O, lse;      ///< O rounded; lse [sequences x heads, queries, 1]: -inf for a query that sees no key
  Tensor dQ, dK, dV;  ///< by query head; dQ rounded, dK and dV not

 private:
  /// Query rows [first, first + rows) and the tiles [key, key + keys) around all keys that they read.
  struct Block {
    int64_t first = 0, rows = 0, key = 0, keys = 0;
    Tensor hidden;   ///< bool [sequences, 1, rows, keys]: the row does not read the key; undefined: no row of the batch hides any
    Tensor S;        ///< [sequences x heads, rows, keys]: what the softmax is of; -inf where hidden
    Tensor capped;   ///< softcap: tanh(s q.k / softcap), the same; else undefined
    Tensor m, l, L;  ///< [sequences x heads, rows, 1]; where a row reads nothing: 0, 1, 0

    Tensor of_rows(const Tensor& t) const { return t.narrow(1, first, rows); }
    Tensor of_keys(const Tensor& t) const { return t.narrow(1, key, keys); }
  };

  void note_reads(const std::vector<Sequence>& sequences);
  Block block(int64_t first, int64_t rows) const;
  Tensor by_head(const Tensor& x) const { return x.unflatten(0, {begin_.size(0), -1}); }
  Tensor round(const Tensor& x) const { return x.to(a_.dtype).to(at::kFloat); }
  Tensor product(const Tensor& x, const Tensor& y) const;
  void score(Block& b) const;
  void add_bias(const Block& b) const;
  Tensor exponentials(const Block& b, Tensor x) const;
  Tensor sinks(const Block& b) const;
  void settle(Block& b, const Tensor& l) const;
  Tensor online_output(Block& b) const;
  Tensor softmax(Block& b) const;
  Tensor output(const Block& b, Tensor P) const;
  void compute(Block& b);
  void add_gradients(const Block& b, Tensor P);
  void drop(Tensor& x, const Block& b) const;

  const Arithmetic& a_;
  const ScoreOptions& options_;
  Tensor Q_, K_, V_, G_;
  std::vector<std::pair<int64_t, int64_t>> around_;  ///< by query: from the first to behind the last key that it reads anywhere
  Tensor begin_, end_, filled_;                      ///< Reads, [sequences, 1, queries, 1]
  Tensor keys_;                                      ///< 0, 1, 2, …
  bool any_filled_ = false, any_hidden_ = false;     ///< some row is filled; does not read some key of the batch
};

}  // namespace attnbench::emulation
