// One row of a block, and the errors of what it stores: what the steps of the oracle in LibTorch share. Formulas:
// error_model.hpp.
#pragma once

#include <cmath>
#include <cstdint>

#include "harness/attention/oracle_torch_rows.hpp"

namespace attnbench::torch_oracle {

/// Deviations beyond which no error is expected: what lies nearer to a tie is uncertain.
inline constexpr double kCertain = 4;

/// What an uncertain S does to its own key and what it does to the others may cancel, but the next rounding may swallow the
/// latter: three such squares, each by itself, bound their sum.
inline constexpr double kAlone = 3;

/// The largest |log P| of an fp32 P.
inline constexpr double kDeepest = 104;

ATTNBENCH_ON_BOTH inline double square(double x) {
  return x * x;
}

/// A value that an implementation stores, and the variance of what is uncertain about its rounding.
struct Stored {
  double value, variance;
};

/// x as it is stored by who knows it up to `doubt`: what lies nearer to a tie may be the neighbour. Infinities are left out.
ATTNBENCH_ON_BOTH inline Stored round_near(const Setting& s, double x, double doubt) {
  const double stored = round_to(s.rounding.dtype, static_cast<float>(x));
  if (!(std::fabs(stored) < INFINITY)) return {x, 0};
  // A power of two that may lie between brings the ties below it closer.
  const double least = s.spacing.at(larger(std::fabs(x) - doubt, 0.0)), most = s.spacing.at(std::fabs(x) + doubt);
  const bool known = least / 2 - std::fabs(x - stored) > doubt;
  return {stored, known ? 0 : most * most / 2};
}

/// s x as it is stored, of a stored x: where x may be its neighbour, s x is as uncertain as that.
ATTNBENCH_ON_BOTH inline Stored scaled(const Setting& s, Stored x) {
  const double value = x.value * s.scale, variance = x.variance * square(s.scale);
  const Stored product = round_near(s, value, kCertain * s.rounding.e * std::fabs(value) + std::sqrt(2 * variance));
  return {product.value, variance + product.variance};
}

/// Which row of a block it is, and what it reads.
struct Row {
  ATTNBENCH_ON_BOTH Row(const BlockRows& b, int64_t index)
      : index(index),
        head(index / b.rows),
        query(b.first + index % b.rows),
        of_all(head * b.s.queries + query),
        matrix(index * b.keys),
        sequence(head / b.s.heads_of_sequence),
        begin(b.s.begin[sequence * b.s.queries + query]),
        end(b.s.end[sequence * b.s.queries + query]),
        filled(b.s.empty[sequence * b.s.queries + query] && begin < end),
        n(static_cast<double>(end - begin)),
        terms(static_cast<double>(b.s.terms[sequence])),
        factors(b.s.factors ? b.s.factors + of_all * b.s.stored_keys + b.key : nullptr) {}

  ATTNBENCH_ON_BOTH bool reads_any() const { return begin < end; }
  /// key: of the sequence.
  ATTNBENCH_ON_BOTH bool reads(int64_t key) const { return key >= begin && key < end; }
  ATTNBENCH_ON_BOTH double factor(int64_t j) const { return factors ? factors[j] : 1; }

  int64_t index, head, query;
  int64_t of_all;  ///< among all queries of all heads
  int64_t matrix;  ///< its first element in a matrix
  int64_t sequence, begin, end;
  bool filled;
  double n, terms;  ///< keys that it reads; queries x group of a key
  const double* factors;
};

/// max(u |x|, smallest)^2 of an x that is not 0 by the mask.
ATTNBENCH_ON_BOTH inline double largest_error2(const Rounding& r, double x2, double smallest2) {
  const double relative = x2 * square(r.u);
  return r.f == 0 ? relative : larger(relative, smallest2);
}

/// hP^2, or hB^2: of P M as it is stored.
ATTNBENCH_ON_BOTH inline double weight_error2(const Rounding& r, double W, double M, double smallest) {
  return M == 0 ? 0 : largest_error2(r, W * W, square(smallest));
}

/// Variance of the P that V is multiplied by. least: its smallest rounding error; stored: eager's variance.
ATTNBENCH_ON_BOTH inline double weight_variance(const Rounding& r, double W, double M, double least, double stored) {
  if (r.scores) return stored;
  return r.p ? weight_error2(r, W, M, least) / 3 : 0;
}

}  // namespace attnbench::torch_oracle
