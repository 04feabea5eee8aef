// The Eigen oracle's view of one head: operands, blocks of query rows against the keys that they read, and the largest rounding
// errors of what a block stores. Letters and formulas: error_model.hpp.
#pragma once

#include <cstdint>
#include <vector>

#include <Eigen/Core>

#include "harness/attention/oracle.hpp"

namespace attnbench::eigen_oracle {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Array = Eigen::Array<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Column = Eigen::ArrayXd;
using ConstMap = Eigen::Map<const Matrix>;

/// An error of so many times what the model says does not occur: closer to a tie than that, a rounding is uncertain.
inline constexpr double kSure = 4;

/// (a + b + c)^2 <= 3 (a^2 + b^2 + c^2). One S moves its own P and dS, and through sums over the row those of all keys, which may
/// cancel, unless the next rounding swallows the others.
inline constexpr double kMovedTogether = 3;

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

/// Operands of a head and the powers of them that variances need.
struct Operands {
  explicit Operands(const HeadProblem& h)
      : Q(ConstMap(h.q.const_data_ptr<double>(), h.queries, h.d)),
        K(ConstMap(h.k.const_data_ptr<double>(), h.stored_keys, h.d)),
        V(ConstMap(h.v.const_data_ptr<double>(), h.stored_keys, h.dv)),
        G(ConstMap(h.dout.const_data_ptr<double>(), h.queries, h.dv)),
        Qa(Q.cwiseAbs()),
        Ka(K.cwiseAbs()),
        Q2(Q.cwiseAbs2()),
        K2(K.cwiseAbs2()),
        V2(V.cwiseAbs2()),
        G2(G.cwiseAbs2()) {}
  ConstMap Q, K, V, G;
  Matrix Qa, Ka, Q2, K2, V2, G2;
};

/// What an implementation rounds and the oracle rounds too: the value, and the variance of what is uncertain about it.
struct Replayed {
  Array value, variance;
};

/// x rounded to the dtype. Uncertain is only what lies nearer to a tie than `tolerance`: it may be rounded to the other side.
/// What overflows stays as it is.
Replayed replay(Dtype dtype, const Array& x, const Array& tolerance);

/// s x as it is stored, of a stored x: where x may be its neighbour, s x is as uncertain as that.
Replayed replay_scaled(const HeadProblem& h, Replayed x);

/// Some rows of a head against the keys that any of them reads; P is 0 where a row does not read.
struct Block {
  int64_t first = 0, rows = 0;
  Range keys;
  Array P, S, eS2;
  Array vT, vS;      ///< eager: variances of the replayed T and of the S that comes of it; else empty
  Replayed stored;   ///< eager: P M as P V and P^T dO read it; else empty
  Array moved;       ///< eager: 3 P^2 vS, square of what that moves P by; else empty
  Array J, eJ2, PJ;  ///< softcap: derivative of S by what is capped, square of its error, P J; else empty
  Array kT;          ///< softcap: dJ/dT of T = s q.k; else empty
  Array M, PM;       ///< dropout: what P is multiplied by, P M; else empty
  Column L, l, n;    ///< LSE, sum of exp relative to the row's largest score, keys read
  Column eL2;
  Column sL;
  std::vector<Range> read;  ///< relative to keys.begin
  std::vector<char> uniform;

  bool capped() const { return J.size() > 0; }
  /// What D's share in dS is multiplied by.
  const Array& weights_of_d() const { return capped() ? PJ : P; }
  bool drops() const { return M.size() > 0; }
  /// What V is multiplied by.
  const Array& weights() const { return stored.value.size() > 0 ? stored.value : drops() ? PM : P; }

  auto rows_of(const auto& m) const { return m.middleRows(first, rows); }
  auto keys_of(const auto& m) const { return m.middleRows(keys.begin, keys.size()); }
};

/// The block of query rows from `first` on: as many as keep a few matrices of a block in a core's cache.
Block make_block(const HeadProblem& h, const Operands& x, int64_t first);

/// max(u |x|, smallest)^2 where a key is read, else 0: the square of the largest rounding error.
template <typename X>
Array largest_error2(const Rounding& r, const Block& b, const X& x, double smallest) {
  return (b.P != 0).select((r.u * x.abs()).max(smallest).square(), Array::Zero(b.rows, b.keys.size()));
}

/// hP^2/3; eager: of the replayed P.
Array stored_p_variance(const Rounding& r, const Block& b);

/// hB^2: of P M as it is stored.
Array weight_error2(const Rounding& r, const Block& b);

/// dS/dT: that of the softcap; 0 in a uniform row, whose scores are constants.
Array score_by_product(const Block& b);

}  // namespace attnbench::eigen_oracle
