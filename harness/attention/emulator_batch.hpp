// One batch of the emulator: attention in the precision of a profile, one tile of 64 keys after the other, all query rows and
// heads at once, in LibTorch operations on any device. fp32 arithmetic, rounding where the profile says.
//   P unnormalised or not rounded: online softmax, P relative to the running maximum.
//   P normalised: one sweep for the row's maximum and sum, another for P V.
//   D from P o dP: one sweep for D, another for the gradients.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "harness/attention/error_model.hpp"

namespace attnbench::emulation {

using at::Tensor;

inline constexpr int64_t kTile = 64;

/// The keys [begin, end) of its sequence that a query reads. filled: it sees none, and reads all as if they were equal.
struct Reads {
  int64_t begin = 0, end = 0;
  bool filled = false;

  bool any_of(int64_t first, int64_t last) const { return begin < last && end > first; }
  bool all_of(int64_t first, int64_t last) const { return begin <= first && end >= last && !filled; }
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

/// A tile of keys [first, first + keys) and the query rows [begin, end) around all that read some of it; rows outside
/// [partial_begin, partial_end) read all of it.
struct KeyTile {
  int64_t first = 0, keys = 0, begin = 0, end = 0, partial_begin = 0, partial_end = 0;

  int64_t rows() const { return end - begin; }
  Tensor of_rows(const Tensor& t) const { return t.narrow(1, begin, rows()); }
  Tensor of_keys(const Tensor& t) const { return t.narrow(1, first, keys); }
};

/// What the arithmetic of a case is like.
struct Arithmetic {
  Rounding rounding;
  double scale = 0;
  double filler = 0;  ///< score of the keys of a filled row: 0, or NaN
  at::ScalarType dtype = at::kFloat;
  at::ScalarType operand = at::kFloat;  ///< of rounded values in a product: the tensor cores' dtype; on a CPU fp32
};

/// Softcap, ALiBi, sinks and dropout of the batch's query heads, in fp32 and never rounded further.
struct ScoreOptions {
  double softcap = 0;
  Tensor slopes, sinks;  ///< [1, heads, 1, 1]; undefined: none
  Tensor offsets;        ///< [sequences, 1, 1, 1]: where each diagonal starts
  Tensor factors;        ///< fp32 [sequences x heads, queries, keys]: what dropout multiplies P by; undefined: nothing
};

/// Attention of [sequences x heads, queries, channels] in which each sequence is padded with zeros to the longest.
class Batch {
 public:
  Batch(const Arithmetic& arithmetic, const ScoreOptions& options, const std::vector<Sequence>& sequences, Tensor Q, Tensor K,
        Tensor V, Tensor G);
  void forward();
  void backward();
  /// [sequences x heads, queries, 1]; -inf for a query that sees no key.
  Tensor lse() const;

  Tensor O;           ///< rounded
  Tensor dQ, dK, dV;  ///< by query head; dQ rounded, dK and dV not

 private:
  void find_tiles(const std::vector<Sequence>& sequences);
  Tensor round(const Tensor& x) const { return x.to(a_.dtype).to(at::kFloat); }
  Tensor product(const Tensor& x, const Tensor& y) const;
  void hide(Tensor& x, const KeyTile& tile, double value) const;
  Tensor products(const KeyTile& tile) const;
  Tensor scores(const KeyTile& tile) const;
  void add_bias(Tensor& S, const KeyTile& tile) const;
  void drop(Tensor& x, const KeyTile& tile) const;
  Tensor dp(const KeyTile& tile) const;
  Tensor online_softmax(const KeyTile& tile, bool rescales_output);
  void settle_rows();
  Tensor probabilities(const KeyTile& tile) const;
  Tensor row_sums() const;
  void add_gradients(const KeyTile& tile, const Tensor& D);

  const Arithmetic& a_;
  const ScoreOptions& options_;
  Tensor Q_, K_, V_, G_;
  Tensor m_, l_, L_;             ///< [sequences x heads, queries, 1]
  Tensor begin_, end_, filled_;  ///< Reads, [sequences, 1, queries, 1]
  Tensor keys_;                  ///< 0, 1, 2, …
  bool any_filled_ = false;
  std::vector<KeyTile> tiles_;
};

}  // namespace attnbench::emulation
