// From scores to O, its variance and D.
#include "harness/attention/oracle_torch_rows.hpp"

#include "harness/attention/oracle_torch_row.hpp"

namespace attnbench::torch_oracle {
namespace {

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

}  // namespace attnbench::torch_oracle
