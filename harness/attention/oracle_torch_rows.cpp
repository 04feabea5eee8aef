#include "harness/attention/oracle_torch_rows.hpp"

#include "harness/attention/oracle_torch_reads.hpp"

namespace attnbench::torch_oracle {
namespace {

/// Deviations beyond which no error is expected: what lies nearer to a tie is uncertain.
constexpr double kCertain = 4;

/// What an uncertain S does to its own key and what it does to the others may cancel, but the next rounding may swallow the
/// latter: three such squares, each by itself, bound their sum.
constexpr double kAlone = 3;

/// The largest |log P| of an fp32 P.
constexpr double kDeepest = 104;

ATTNBENCH_ON_BOTH double square(double x) {
  return x * x;
}

/// A value that an implementation stores, and the variance of what is uncertain about its rounding.
struct Stored {
  double value, variance;
};

/// x as it is stored by who knows it up to `doubt`: what lies nearer to a tie may be the neighbour. Infinities are left out.
ATTNBENCH_ON_BOTH Stored round_near(const Setting& s, double x, double doubt) {
  const double stored = round_to(s.rounding.dtype, static_cast<float>(x));
  if (!(std::fabs(stored) < INFINITY)) return {x, 0};
  // A power of two that may lie between brings the ties below it closer.
  const double least = s.spacing.at(larger(std::fabs(x) - doubt, 0)), most = s.spacing.at(std::fabs(x) + doubt);
  const bool known = least / 2 - std::fabs(x - stored) > doubt;
  return {stored, known ? 0 : most * most / 2};
}

/// s x as it is stored, of a stored x: where x may be its neighbour, s x is as uncertain as that.
ATTNBENCH_ON_BOTH Stored scaled(const Setting& s, Stored x) {
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
ATTNBENCH_ON_BOTH double largest_error2(const Rounding& r, double x2, double smallest2) {
  const double relative = x2 * square(r.u);
  return r.f == 0 ? relative : larger(relative, smallest2);
}

/// hP^2, or hB^2: of P M as it is stored.
ATTNBENCH_ON_BOTH double weight_error2(const Rounding& r, double W, double M, double smallest) {
  return M == 0 ? 0 : largest_error2(r, W * W, square(smallest));
}

/// Variance of the P that V is multiplied by. least: its smallest rounding error; stored: eager's variance.
ATTNBENCH_ON_BOTH double weight_variance(const Rounding& r, double W, double M, double least, double stored) {
  if (r.scores) return stored;
  return r.p ? weight_error2(r, W, M, least) / 3 : 0;
}

/// Scores and the softmax of them. Scores are computed anew in every pass over a row: reading is cheap, writing is not.
struct SoftmaxStep {
  BlockRows b;
  OfScores out;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t index) const;

 private:
  /// Of one key that is read.
  struct Score {
    double S, A;       ///< A: what its formula is replaced by
    double tanh, eJ2;  ///< of softcap
    double vT, vS;     ///< eager
  };
  ATTNBENCH_ON_BOTH double product(const Row& row, int64_t j) const { return b.m.P[row.matrix + j]; }
  ATTNBENCH_ON_BOTH double value(const Row& row, int64_t j) const;
  ATTNBENCH_ON_BOTH double bias(const Row& row, int64_t j) const;
  ATTNBENCH_ON_BOTH Score score(const Row& row, int64_t j) const;
  ATTNBENCH_ON_BOTH double error_of_p(const Row& row, const Score& score, double P) const;
  ATTNBENCH_ON_BOTH void sample(const RowTeam& team, const Row& row, double m) const;
  ATTNBENCH_ON_BOTH void write(const Row& row, int64_t j, double P, const Score& x, const RowNumbers& numbers, double& vP) const;
  ATTNBENCH_ON_BOTH void write_nothing(int64_t at) const;
};

/// ALiBi's.
ATTNBENCH_ON_BOTH double SoftmaxStep::bias(const Row& row, int64_t j) const {
  if (!b.s.slopes) return 0;
  const double distance = static_cast<double>(row.query + b.s.diagonals[row.sequence] - b.key - j);
  return std::fabs(distance) * b.s.slopes[row.head];
}

/// S of a key that is read.
ATTNBENCH_ON_BOTH double SoftmaxStep::value(const Row& row, int64_t j) const {
  const Setting& s = b.s;
  if (row.filled) return s.filler;
  double S = product(row, j) * s.scale;
  if (s.rounding.scores) S = scaled(s, round_near(s, product(row, j), 0)).value;  // Q K^T is stored, then s times that
  if (s.softcap != 0) S = std::tanh(S / s.softcap) * s.softcap;
  return S - bias(row, j);
}

/// The same with its errors.
ATTNBENCH_ON_BOTH SoftmaxStep::Score SoftmaxStep::score(const Row& row, int64_t j) const {
  const Setting& s = b.s;
  const Rounding& r = s.rounding;
  Score x{};
  x.S = value(row, j);
  const double terms = b.m.e2[row.matrix + j];
  double T = product(row, j) * s.scale;
  if (r.scores) {
    const Stored stored = scaled(s, round_near(s, product(row, j), terms * kCertain * r.e * r.k_scores));
    T = stored.value, x.vT = stored.variance;
  } else {
    x.A = terms * std::fabs(s.scale);
  }
  double J = 1;
  if (s.softcap != 0) {
    const double t = std::tanh(T / s.softcap);
    J = 1 - t * t;
    x.tanh = t;
    x.eJ2 = square((x.A * J * std::fabs(t) * (2 * r.k_scores / s.softcap) + 4) * r.e);
    x.A = x.A * J + std::fabs(t * s.softcap) * (4 / r.k_scores);
  }
  if (s.slopes) x.A += bias(row, j) * (2 / r.k_scores) + std::fabs(x.S) / r.k_scores;  // its rounding and that of the sum
  if (row.filled) x.A = 0;
  x.vS = x.vT * square(row.filled ? 0 : J);  // equal scores of an empty row are constants
  return x;
}

/// eS. Eager's P is as uncertain as the stored products and an fp32 softmax of them.
ATTNBENCH_ON_BOTH double SoftmaxStep::error_of_p(const Row& row, const Score& score, double P) const {
  const Rounding& r = b.s.rounding;
  const double eS = (score.A * r.k_scores + 4) * r.e;
  if (!r.scores) return eS;
  const double depth = std::fabs(std::log(P));
  return P == 0 ? 0 : eS + ((depth > kDeepest ? kDeepest : depth) + std::sqrt(row.n)) * r.e;
}

ATTNBENCH_ON_BOTH void SoftmaxStep::sample(const RowTeam& team, const Row& row, double m) const {
  if (!out.samples || row.head >= b.s.sampled_heads || row.filled || !row.reads_any()) return;
  const int64_t to = b.s.first_samples[row.of_all], first = first_sample(row.begin, row.query);
  if (to < 0 || first >= row.end) return;
  team.each((row.end - first + kSampledKeys - 1) / kSampledKeys,
            [&](int64_t i) { out.samples[to + i] = value(row, first + i * kSampledKeys - b.key) - m; });
}

ATTNBENCH_ON_BOTH void SoftmaxStep::write_nothing(int64_t at) const {
  const Matrices& m = b.m;
  m.P[at] = 0, m.e2[at] = 0;
  if (m.W != m.P) m.W[at] = 0;
  if (m.w_o) m.w_o[at] = 0, m.w_mean[at] = 0;
}

/// P, what V is multiplied by, and the weights of var o. vP: variance of the P that V is multiplied by.
ATTNBENCH_ON_BOTH void SoftmaxStep::write(const Row& row, int64_t j, double P, const Score& x, const RowNumbers& numbers,
                                          double& vP) const {
  const Rounding& r = b.s.rounding;
  const Matrices& m = b.m;
  const int64_t at = row.matrix + j;
  const double P2 = P * P, M = row.factor(j), e2 = square(error_of_p(row, x, P)), own = P2 * e2, shifted = kAlone * P2 * x.vS;
  Stored W{P * M, 0};
  if (r.scores) {
    W = round_near(b.s, W.value, kCertain * std::sqrt(own + shifted + P2 * numbers.shifted) * M);
    m.vT[at] = x.vT, m.vP[at] = W.variance;
  }
  m.P[at] = P, m.e2[at] = e2, m.W[at] = W.value;
  if (b.s.softcap != 0) m.tanh[at] = x.tanh, m.eJ2[at] = x.eJ2;
  if (!m.w_o) return;
  vP = weight_variance(r, W.value, M, numbers.least, W.variance);
  m.w_mean[at] = own * M;
  m.w_o[at] = (own + shifted + (P != 0 ? kFlushedP2 : 0)) * (M * M) + vP + square(W.value) * (row.n * r.accumulation);
}

ATTNBENCH_ON_BOTH void SoftmaxStep::operator()(const RowTeam& team, int64_t index) const {
  const Row row(b, index);
  const Setting& s = b.s;
  const Rounding& r = s.rounding;
  const auto each_read = [&](auto f) { team.each(row.end - row.begin, [&](int64_t i) { f(row.begin - b.key + i); }); };
  RowNumbers numbers{};
  double largest = -INFINITY, sum = 0;
  each_read([&](int64_t j) { largest = larger(value(row, j), largest); });
  largest = team.max(largest);
  const double sink = s.sinks && !row.filled ? s.sinks[row.head] : -INFINITY;
  const double m = row.reads_any() ? larger(largest, sink) : 0;
  sample(team, row, m);
  each_read([&](int64_t j) { sum += std::exp(value(row, j) - m); });
  sum = team.sum(sum);  // from here on nobody reads what another thread overwrites
  const double l = row.reads_any() ? sum + std::exp(sink - m) : 1, of_one = 1 / l;
  numbers.least = r.p_normalised ? r.f : r.f / l;
  if (r.scores) {
    each_read([&](int64_t j) {
      const Score x = score(row, j);
      numbers.shifted += kAlone * square(std::exp(x.S - m) * of_one) * x.vS;
    });
    numbers.shifted = team.sum(numbers.shifted);
  }
  double PA = 0, total = 0, sum2 = 0, sum4 = 0, most = 0;
  team.each(b.keys, [&](int64_t j) {
    const int64_t at = row.matrix + j;
    if (!row.reads(b.key + j)) return write_nothing(at);
    const Score x = score(row, j);
    const double P = std::exp(x.S - m) * of_one;
    double vP = 0;
    write(row, j, P, x, numbers, vP);
    const double W2 = square(b.m.W[at]);
    PA += P * x.A, total += P * P * b.m.e2[at];
    sum2 += W2, sum4 += W2 * W2;
    most = larger(vP, most);
  });
  PA = team.sum(PA);
  const double L = m + std::log(l), sL = (std::fabs(L) + 4 + PA * r.k_scores + std::sqrt(row.n)) * r.e;
  numbers.eL2 = r.accumulation > 0 ? sL * sL : square((std::fabs(L) * 2 + 2) * r.e);
  numbers.total = team.sum(total), numbers.largest_vP = team.max(most);
  sum2 = team.sum(sum2), sum4 = team.sum(sum4);
  if (!team.writes()) return;
  b.numbers[index] = numbers;
  if (!out.lse) return;
  out.lse[row.of_all] = row.filled || !row.reads_any() ? -INFINITY : L;
  out.sigma[row.of_all] = sL;
  out.o_freedom[row.of_all] = r.scores ? static_cast<double>(s.dv) : row.filled ? 0 : effective_sources(sum2, sum4, s.dv);
}

struct OutputStep {
  BlockRows b;
  OfOutput out;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t index) const {
    const Row row(b, index);
    const Rounding& r = b.s.rounding;
    const RowNumbers known = b.numbers[index];
    const double of_o2 = known.total + row.n * r.accumulation + (r.scores ? known.shifted : 0);
    const int64_t here = index * b.s.dv, there = row.of_all * b.s.dv;
    // Equal P of a filled row round alike.
    const double* uniform =
        row.filled && out.uniform
            ? out.uniform + (row.head * out.uniform_rows + (out.uniform_rows > 1 ? index % b.rows : 0)) * b.s.dv
            : nullptr;
    double D = 0, absD = 0, gu = 0;
    team.each(b.s.dv, [&](int64_t x) {
      const double O = out.O[here + x], G = out.dout[there + x], rounding = b.s.spacing.variance_at(O);
      double variance = out.squares[here + x] - O * out.mean[here + x] * 2 + O * O * of_o2 + rounding;
      if (uniform) variance += known.largest_vP * square(uniform[x]);
      out.o[there + x] = O;
      out.variance[there + x] = row.reads_any() ? variance : 0;
      D += G * O, absD += std::fabs(G * O), gu += G * G * rounding;
    });
    D = team.sum(D), absD = team.sum(absD), gu = team.sum(gu);
    if (!team.writes()) return;
    RowNumbers& numbers = b.numbers[index];
    numbers.D = D, numbers.absD = absD, numbers.gu = gu;
  }
};

struct GivenOutputStep {
  BlockRows b;
  const double *o, *dout;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t index) const {
    const int64_t first = Row(b, index).of_all * b.s.dv;
    double D = 0;
    team.each(b.s.dv, [&](int64_t x) { D += dout[first + x] * o[first + x]; });
    D = team.sum(D);
    if (team.writes()) b.numbers[index].D = D;
  }
};

/// From dO V^T to dS and the weights of the gradients' variances.
struct GradientStep {
  BlockRows b;
  bool given;
  double* dq_freedom;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t index) const;

 private:
  /// Of one key that is read.
  struct Element {
    double P, P2, M, W, e2;
    double J, kT, eJ2;       ///< derivative of S by what softcap caps, its own by T, its error squared
    double PJ, dP, vdP;      ///< vdP: eager: variance of the replayed dP
    double summed;           ///< accumulation of dP
    double vT, vS, shifted;  ///< eager
  };
  ATTNBENCH_ON_BOTH Element element(const Row& row, int64_t j, bool sums) const;
  ATTNBENCH_ON_BOTH double centred(const Row& row, const Element& x, double D) const;
  ATTNBENCH_ON_BOTH double fp32_error2(const Element& x, double raw2, double dS2) const;
  ATTNBENCH_ON_BOTH double ds_error2(const Element& x, const RowNumbers& numbers, double centred, double dS2) const;
  ATTNBENCH_ON_BOTH void write_nothing(int64_t at) const;
  ATTNBENCH_ON_BOTH void write_flash(const Row& row, int64_t at, const Element& x, const RowNumbers& numbers,
                                     double centred) const;
  ATTNBENCH_ON_BOTH void write_eager(const Row& row, int64_t at, const Element& x, const RowNumbers& numbers, double centred,
                                     double eT) const;
  ATTNBENCH_ON_BOTH double weight_of_dv(const Row& row, int64_t at, const Element& x, const RowNumbers& numbers) const;
};

/// sums: what the sums of dP accumulate is asked for.
ATTNBENCH_ON_BOTH GradientStep::Element GradientStep::element(const Row& row, int64_t j, bool sums) const {
  const Rounding& r = b.s.rounding;
  const int64_t at = row.matrix + j;
  Element x{};
  x.P = b.m.P[at], x.P2 = x.P * x.P, x.M = row.factor(j), x.W = b.m.W[at], x.e2 = b.m.e2[at];
  x.J = 1;
  if (b.s.softcap != 0) {
    const double t = b.m.tanh[at];
    x.J = 1 - t * t;
    x.kT = t * x.J * (-2 / b.s.softcap);
    x.eJ2 = b.m.eJ2[at];
  }
  x.PJ = x.P * x.J;
  x.dP = b.m.dS[at];
  if (sums || r.scores) x.summed = (std::sqrt(b.m.w_q[at]) + std::fabs(x.dP)) * (r.e * r.k_dp);
  if (r.scores) {
    const Stored dP = round_near(b.s, x.dP, x.summed * kCertain);
    x.dP = dP.value, x.vdP = dP.variance * square(x.M), x.summed = 0;
    x.vT = b.m.vT[at];
    x.vS = x.vT * square(row.filled ? 0 : x.J);
    x.shifted = kAlone * x.P2 * x.vS;
  }
  x.dP *= x.M, x.summed *= x.M;
  return x;
}

/// dP - D. The one key of a row has P = 1 and dP = D: what the arithmetic leaves of dS = 0 would be counted as a source.
ATTNBENCH_ON_BOTH double GradientStep::centred(const Row& row, const Element& x, double D) const {
  const bool alone = row.n == 1 && !row.filled && !b.s.sinks && !given;
  return alone ? 0 : x.dP - D;
}

/// Of a dS that is not rounded.
ATTNBENCH_ON_BOTH double GradientStep::fp32_error2(const Element& x, double raw2, double dS2) const {
  return dS2 * x.e2 + (x.P != 0 ? kFlushedDs2 : 0) + raw2 * x.eJ2;
}

/// hS^2 of a rounded dS.
ATTNBENCH_ON_BOTH double GradientStep::ds_error2(const Element& x, const RowNumbers& numbers, double centred, double dS2) const {
  const Rounding& r = b.s.rounding;
  double hS2 = largest_error2(r, dS2, square(r.f_ds));
  if (r.ds_from_rounded_p) hS2 += largest_error2(r, x.P2, square(r.f)) * square(centred * x.J);
  if (r.d_from_output) hS2 += square(x.PJ * r.u) * numbers.sD2;
  return hS2;
}

ATTNBENCH_ON_BOTH void GradientStep::write_nothing(int64_t at) const {
  const Matrices& m = b.m;
  for (double* matrix : {m.dS, m.w_q, m.w_k, m.w_v, m.eT, m.exact_dS, m.left_out, m.left_out_root})
    if (matrix) matrix[at] = 0;
  if (m.PJ && m.PJ != m.P) m.PJ[at] = 0;
}

ATTNBENCH_ON_BOTH double GradientStep::weight_of_dv(const Row& row, int64_t at, const Element& x,
                                                    const RowNumbers& numbers) const {
  const Rounding& r = b.s.rounding;
  const double of_others = r.scores ? numbers.shifted : numbers.eL2 + row.terms * r.accumulation;
  const double w = (x.P2 * (x.e2 + of_others) + x.shifted + (x.P != 0 ? kFlushedP2 : 0)) * square(x.M);
  if (r.scores) return w + b.m.vP[at];
  return r.ds ? w + weight_error2(r, x.W, x.M, r.f) / 3 : w;
}

ATTNBENCH_ON_BOTH void GradientStep::write_flash(const Row& row, int64_t at, const Element& x, const RowNumbers& numbers,
                                                 double centred) const {
  const Rounding& r = b.s.rounding;
  const double raw = x.P * centred, dS = raw * x.J, dS2 = dS * dS;
  double w = fp32_error2(x, raw * raw, dS2);
  if (r.ds) w += ds_error2(x, numbers, centred, dS2) / 3;
  b.m.dS[at] = dS;
  b.m.w_q[at] = w + dS2 * (row.n * r.accumulation);
  b.m.w_k[at] = w + dS2 * (numbers.eL2 + row.terms * r.accumulation) + square(x.PJ) * numbers.sD2;
}

/// What is uncertain about the stored T and dP, at its own key and through l and D at the others; then about dS itself.
ATTNBENCH_ON_BOTH void GradientStep::write_eager(const Row& row, int64_t at, const Element& x, const RowNumbers& numbers,
                                                 double centred, double eT) const {
  const double raw = x.P * centred, dS = raw * x.J, dS2 = dS * dS, s2 = square(b.s.scale);
  const double slope = row.filled ? 0 : x.J, mu = raw * (b.s.softcap != 0 ? x.J * slope + x.kT : slope);
  const double own = kAlone * (mu * mu * x.vT + square(x.PJ) * x.vdP) + fp32_error2(x, raw * raw, dS2);
  const double error2 = own + square(x.PJ) * numbers.of_d + dS2 * numbers.shifted;
  const Stored stored = scaled(b.s, round_near(b.s, dS, kCertain * (std::sqrt(error2) + eT)));
  b.m.dS[at] = stored.value;
  b.m.exact_dS[at] = dS;
  b.m.w_q[at] = own * s2 + stored.variance;
  b.m.w_k[at] = error2 * s2 + stored.variance;
  if (!b.m.left_out) return;
  const double left_out = x.M == 0 ? stored.variance : 0;
  b.m.left_out[at] = left_out, b.m.left_out_root[at] = std::sqrt(left_out);
}

ATTNBENCH_ON_BOTH void GradientStep::operator()(const RowTeam& team, int64_t index) const {
  const Row row(b, index);
  const Rounding& r = b.s.rounding;
  RowNumbers numbers = b.numbers[index];
  const auto each_read = [&](bool sums, auto f) {
    team.each(row.end - row.begin, [&](int64_t i) {
      const int64_t j = row.begin - b.key + i;
      f(row.matrix + j, element(row, j, sums));
    });
  };
  double eD = 2 * r.e * numbers.absD;
  if (!given && (r.scores || !r.d_from_output)) {
    double D = 0, of_sizes = 0;
    each_read(/*sums=*/true, [&](int64_t, const Element& x) {
      D += x.P * x.dP;
      of_sizes += x.P * (std::fabs(x.dP) * (std::sqrt(row.n) + 2) * r.e + x.summed);
    });
    D = team.sum(D), of_sizes = team.sum(of_sizes);
    if (r.scores) numbers.D = D;
    if (!r.d_from_output) eD = of_sizes;
  }
  if (!given) {
    double sD2 = 0, of_d = 0;
    each_read(/*sums=*/false, [&](int64_t at, const Element& x) {
      const double raw2 = square(x.P * centred(row, x, numbers.D));
      sD2 += raw2 * x.e2;
      if (r.scores) of_d += kAlone * (raw2 * x.vS + x.P2 * x.vdP);
      if (r.d_from_output)
        sD2 += weight_variance(r, x.W, x.M, numbers.least, r.scores ? b.m.vP[at] : 0) * square(x.dP * b.s.kept);
    });
    numbers.sD2 = team.sum(sD2) + (r.d_from_output ? numbers.gu : 0);
    if (r.scores) numbers.of_d = team.sum(of_d);
  }
  double sum2 = 0, sum4 = 0;
  team.each(b.keys, [&](int64_t j) {
    const int64_t at = row.matrix + j;
    if (!row.reads(b.key + j)) return write_nothing(at);
    const Element x = element(row, j, /*sums=*/!given);
    const double from_mean = centred(row, x, numbers.D), eT = (x.summed + eD) * x.PJ, dS2 = square(x.PJ * from_mean);
    if (r.scores)
      write_eager(row, at, x, numbers, from_mean, eT);
    else
      write_flash(row, at, x, numbers, from_mean);
    sum2 += dS2, sum4 += dS2 * dS2;
    if (given) return;
    b.m.eT[at] = eT;
    b.m.w_v[at] = weight_of_dv(row, at, x, numbers);
    if (b.m.PJ != b.m.P) b.m.PJ[at] = x.PJ;
  });
  if (given) return;
  sum2 = team.sum(sum2), sum4 = team.sum(sum4);
  if (!team.writes()) return;
  b.numbers[index] = numbers;
  dq_freedom[row.of_all] = r.scores ? static_cast<double>(b.s.d) : row.filled ? 0 : effective_sources(sum2, sum4, b.s.d);
}

struct QueryGradientStep {
  BlockRows b;
  OfQueries out;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t index) const {
    const Row row(b, index);
    const Rounding& r = b.s.rounding;
    const RowNumbers numbers = b.numbers[index];
    const double s2 = square(b.s.scale);
    const int64_t here = index * b.s.d, there = row.of_all * b.s.d;
    team.each(b.s.d, [&](int64_t x) {
      // Eager's s dS is what is stored.
      const double dq = r.scores ? out.dq[here + x] : out.dq[here + x] * b.s.scale;
      double variance = b.s.spacing.variance_at(dq);
      if (r.scores) {
        const double shared = square(out.of_d[here + x]) * numbers.of_d + square(out.exact[here + x]) * numbers.shifted;
        variance += out.squares[here + x] + shared * s2;
        // Of what a dropout left out, -P D: where P are equal so are they, and one tie moves all of them to the same side.
        if (out.left_out) variance += larger(square(out.left_out_root[here + x]) - out.left_out[here + x], 0);
      } else {
        variance += out.squares[here + x] * s2 + dq * dq * (numbers.eL2 + row.n * r.accumulation);
        if (out.of_d) variance += square(out.of_d[here + x]) * numbers.sD2 * s2;
      }
      out.value[there + x] = dq;
      out.variance[there + x] = row.reads_any() ? variance : 0;
      if (out.b) out.b[there + x] = out.allowance[here + x] * std::fabs(b.s.scale);
    });
  }
};

/// A "row" is a stretch of keys of one head.
struct SourcesStep {
  static constexpr int64_t kKeys = 256;
  BlockRows b;
  OfKeys out;

  static ATTNBENCH_ON_BOTH int64_t stretches_of(int64_t keys) { return (keys + kKeys - 1) / kKeys; }

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t index) const {
    const int64_t head = index / stretches_of(b.keys), first = index % stretches_of(b.keys) * kKeys;
    team.each(kKeys, [&](int64_t x) {
      const int64_t j = first + x;
      if (j >= b.keys) return;
      double p2 = 0, p4 = 0, ds2 = 0, ds4 = 0;
      for (int64_t row = head * b.rows; row < (head + 1) * b.rows; ++row) {
        const double W2 = square(b.m.W[row * b.keys + j]), dS2 = square(b.m.dS[row * b.keys + j]);
        p2 += W2, p4 += W2 * W2, ds2 += dS2, ds4 += dS2 * dS2;
      }
      const int64_t key = head * b.s.stored_keys + b.key + j;
      out.p2[key] += p2, out.p4[key] += p4, out.ds2[key] += ds2, out.ds4[key] += ds4;
    });
  }
};

}  // namespace

void softmax_rows(const BlockRows& b, const OfScores& out) {
  for_each_row(b.s.on_gpu, b.heads * b.rows, b.keys, SoftmaxStep{b, out});
}

void output_rows(const BlockRows& b, const OfOutput& out) {
  for_each_row(b.s.on_gpu, b.heads * b.rows, b.s.dv, OutputStep{b, out});
}

void given_output_rows(const BlockRows& b, const double* o, const double* dout) {
  for_each_row(b.s.on_gpu, b.heads * b.rows, b.s.dv, GivenOutputStep{b, o, dout});
}

void gradient_rows(const BlockRows& b, bool given, double* dq_freedom) {
  for_each_row(b.s.on_gpu, b.heads * b.rows, b.keys, GradientStep{b, given, dq_freedom});
}

void query_gradient_rows(const BlockRows& b, const OfQueries& out) {
  for_each_row(b.s.on_gpu, b.heads * b.rows, b.s.d, QueryGradientStep{b, out});
}

void add_sources(const BlockRows& b, const OfKeys& out) {
  for_each_row(b.s.on_gpu, b.heads * SourcesStep::stretches_of(b.keys), SourcesStep::kKeys, SourcesStep{b, out});
}

}  // namespace attnbench::torch_oracle
