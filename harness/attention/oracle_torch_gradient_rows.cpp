// From D to the gradients, their variances and sources.
#include "harness/attention/oracle_torch_row.hpp"
#include "harness/attention/oracle_torch_rows.hpp"

namespace attnbench::torch_oracle {
namespace {

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
        if (out.left_out) variance += larger(square(out.left_out_root[here + x]) - out.left_out[here + x], 0.0);
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
