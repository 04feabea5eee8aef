// What the oracle in LibTorch computes of one block of query rows: the keys that they read, scores, probabilities and their
// errors. Letters and formulas: error_model.hpp.
// Dimensions: [heads, rows, keys or channels]; what a row has one of is [heads, rows, 1]. Masks are [1, rows, …] where there is
// one sequence.
// A block launches work and never waits for it: what decides the way of the program is computed on the host.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/tensor.h>

#include "harness/attention/oracle.hpp"
#include "harness/attention/spacing.hpp"

namespace attnbench::torch_oracle {

using at::Tensor;

/// Deviations beyond which no error is expected: what lies nearer to a tie is uncertain.
inline constexpr double kCertain = 4;

/// What an uncertain S does to its own key and what it does to the others may cancel, but the next rounding may swallow the
/// latter: three such squares, each by itself, bound their sum.
inline constexpr double kAlone = 3;

/// The keys [begin, end) that a query reads. An empty row, which sees none, reads none or all that are stored.
struct Stretch {
  int64_t begin = 0, end = 0;
  bool empty = false;
  bool reads() const { return begin < end; }
};

/// Rows [first, first + rows) against keys [key, key + keys), the fewest that hold all that these rows read.
struct Block {
  int64_t first = 0, rows = 0, key = 0, keys = 0;
  bool fills = false;       ///< some empty row reads all stored keys
  bool has_single = false;  ///< some row sees one key
  Tensor unread, filled;    ///< bool [1 or heads, rows, keys]: does not read the key; [..., 1]: empty and reads all
  Tensor reads_any, n;      ///< [1 or heads, rows, 1]: reads a key; how many, in float64
  Tensor Q, G;              ///< [heads, rows, channels]
  Tensor K, V;              ///< [heads, keys, channels]
  Tensor S, P, P2, eS2;     ///< [heads, rows, keys]; S is -inf where no key is read
  Tensor J, eJ2, PJ;        ///< softcap: derivative of S by what is capped, its error squared, P J; else undefined
  Tensor kT;                ///< softcap: dJ/dT; else undefined
  Tensor M, PM, PM2;        ///< dropout: what P is multiplied by, P M and its square; else undefined
  Tensor vT, vS, shifted;   ///< eager: variances of the replayed T = s q.k and of S, 3 P^2 of the latter; else undefined
  Tensor vP;                ///< eager: variance of the replayed P M, which then is PM; else undefined
  Tensor m, l, L, sL, eL2;  ///< [heads, rows, 1]

  /// What D's share in dS is multiplied by.
  const Tensor& weights_of_d() const { return J.defined() ? PJ : P; }
  /// What V is multiplied by, and its square.
  const Tensor& weights() const { return PM.defined() ? PM : P; }
  const Tensor& weights2() const { return PM2.defined() ? PM2 : P2; }
};

/// A value that an implementation stores, and the variance of what is uncertain about its rounding.
struct Stored {
  Tensor value, variance;
};

/// Heads of several sequences, and the blocks of their query rows.
class Blocks {
 public:
  explicit Blocks(const HeadProblem& h);  ///< which outlives it

 protected:
  int64_t step() const;  ///< rows of a block
  Block block(int64_t first) const;

  /// int64 [1 or heads, rows, 1], from `rows` numbers of each sequence.
  Tensor of_heads(const std::vector<int64_t>& of_sequences, int64_t rows) const;
  int64_t sequence_of(int64_t head) const { return head * static_cast<int64_t>(h_.sequences.size()) / h_.heads; }
  Tensor of_rows(const Tensor& all, const Block& b) const { return all.narrow(1, b.first, b.rows); }
  Tensor of_keys(const Tensor& all, const Block& b) const { return all.narrow(1, b.key, b.keys); }

  /// x as it is stored by who knows it up to `doubt`: what lies nearer to a tie may be the neighbour. Infinities are left out.
  Stored round_near(const Tensor& x, const Tensor& doubt) const;
  /// s x as it is stored, of a stored x: where x may be its neighbour, s x is as uncertain as that.
  Stored scaled(Stored x) const;
  /// dS/dT: equal scores of an empty row are constants.
  Tensor score_by_product(const Block& b) const;
  /// max(u |x|, smallest)^2 where a key is read, else 0, of an x that is 0 there; by their squares.
  Tensor largest_error2(const Block& b, const Tensor& x2, const Tensor& smallest2) const;
  /// hP^2, or hB^2: of P M as it is stored.
  Tensor weight_error2(const Block& b, const Tensor& smallest2) const;
  Tensor ulp_variance(const Tensor& x) const { return spacing(r_.dtype, x).square_().div_(12); }

  const HeadProblem& h_;
  const Rounding& r_;
  const double s2_;
  at::TensorOptions options_;
  std::vector<std::vector<Stretch>> stretches_;  ///< by sequence and query
  Tensor key_seen_;                              ///< bool [sequences, stored_keys]
  Tensor Q_, K_, V_, G_;

 private:
  void hide_unread_keys();
  Tensor by_head(const std::vector<double>& values) const { return at::tensor(values, options_).view({-1, 1, 1}); }
  void cap(Block& b, Tensor& A) const;
  void add_bias(Block& b, Tensor& A) const;
  void store_products(Block& b) const;
  void store_probabilities(Block& b) const;
  void softmax(Block& b) const;

  Tensor begin_, end_, empty_;  ///< stretches_ as int64 and bool [1 or heads, queries, 1]
  Tensor shift_;                ///< float64 [1 or heads, 1, 1]: key - query on the diagonal
};

}  // namespace attnbench::torch_oracle
