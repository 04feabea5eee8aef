// The oracle in Eigen: float64, one head at a time, in blocks of query rows against the keys that they see.
// Letters and formulas: error_model.hpp.
#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/oracle_eigen_block.hpp"

namespace attnbench {
namespace {

using namespace eigen_oracle;

using Map = Eigen::Map<Matrix>;
using Entries = Eigen::Map<Column>;

/// A contiguous tensor [1, rows, channels].
Map rows(const at::Tensor& t) {
  return {t.mutable_data_ptr<double>(), t.size(1), t.size(2)};
}

/// A contiguous tensor [1, rows].
Entries entries(const at::Tensor& t) {
  return {t.mutable_data_ptr<double>(), t.numel()};
}

double effective_sources(double sum2, double sum4, int64_t channels) {
  return sum4 > 0 ? std::clamp(sum2 * sum2 / sum4, 1.0, static_cast<double>(channels)) : 1;
}

Matrix rounding_variances(Dtype dtype, const Matrix& x) {
  return x.unaryExpr([dtype](double y) { return rounding_variance(dtype, y); });
}

/// The sum of the values that a uniform row keeps.
template <typename Values>
Eigen::Array<double, 1, Eigen::Dynamic> kept_sum(const Block& b, int64_t i, const Values& V) {
  if (!b.drops()) return V.colwise().sum().array();
  return ((b.M.row(i) != 0).template cast<double>().matrix() * V).array();
}

/// `value` where a query sees a key.
Array visible(const Block& b, double value) {
  return (b.P != 0).select(Array::Constant(b.rows, b.keys.size(), value), 0);
}

/// O, its variance and the LSE; returns O.
Matrix forward(const HeadProblem& h, const Operands& x, const Block& b, const Array& vP, HeadAnswer& out) {
  Entries lse = entries(out.lse), lse_sigma = entries(out.lse_sigma), o_freedom = entries(out.o_freedom);
  const Rounding& r = h.rounding;
  const auto V = b.keys_of(x.V);
  const auto V2 = b.keys_of(x.V2);
  const Array P2 = b.weights().square();
  Array w = b.P.square() * b.eS2;
  const Matrix O = b.weights().matrix() * V;
  const Column total = w.rowwise().sum();
  if (b.drops()) w *= b.M;
  const Matrix wV = w.matrix() * V;
  Array others = visible(b, kFlushedP2);
  if (r.scores) others += b.moved;
  w += b.drops() ? Array(others * b.M) : others;
  if (b.drops()) w *= b.M;
  w += vP;
  if (r.accumulation > 0) w += P2.colwise() * (r.accumulation * b.n);
  Array variance = (w.matrix() * V2).array() - 2 * O.array() * wV.array();
  if (r.scores) variance += O.array().square().colwise() * Column(b.moved.rowwise().sum());
  variance += O.array().square().colwise() * (total + r.accumulation * b.n);
  variance += rounding_variances(r.dtype, O).array();
  for (int64_t i = 0; i < b.rows; ++i) {
    const int64_t row = b.first + i;
    if (b.read[i].size() == 0) variance.row(i).setZero();
    if (b.uniform[i] && r.p) variance.row(i) += vP.row(i).maxCoeff() * kept_sum(b, i, V).square();
    lse[row] = b.read[i].size() == 0 || b.uniform[i] ? -kInfinity : b.L[i];
    lse_sigma[row] = b.sL[i];
    o_freedom[row] = b.uniform[i] ? 0 : effective_sources(P2.row(i).sum(), P2.row(i).square().sum(), h.dv);
    if (r.scores) o_freedom[row] = static_cast<double>(h.dv);
  }
  rows(out.o).middleRows(b.first, b.rows) = O;
  rows(out.o_variance).middleRows(b.first, b.rows) = variance.matrix();
  return O;
}

/// Every 16th visible key of a row, starting at another one in each row.
void sample_scores(const Block& b, std::vector<double>& samples) {
  for (int64_t i = 0; i < b.rows && static_cast<int64_t>(samples.size()) < kScoreSamples; ++i) {
    const Range r = b.read[i];
    if (b.uniform[i] || r.size() == 0) continue;
    const double m = b.S.row(i).segment(r.begin, r.size()).maxCoeff();
    for (int64_t j = r.begin + (b.first + i) * 7 % 16; j < r.end; j += 16) samples.push_back(b.S(i, j) - m);
  }
}

/// dP, dS and what the errors of D and of the fp32 accumulation add.
struct Gradients {
  Array dP, dS;
  Column D;
  Array eT;    ///< fp32 accumulation of dP and of D, in dS; empty where D is given
  Array vdP;   ///< eager: variance of the replayed dP; else empty
  Column sD2;  ///< empty where D is given: it has no error then
  Array wq;    ///< weights of K^2 in the variance of dq, and of Q^2 in that of dk; eager: those of fp32 arithmetic alone
};

/// dP.
Array products_with_values(const Operands& x, const Block& b) {
  Array dP = b.rows_of(x.G) * b.keys_of(x.V).transpose();
  if (b.drops()) dP *= b.M;
  return dP;
}

/// The one key of a row has P = 1 and dP = D, so that dS is 0; what the arithmetic leaves of it would be counted as a source.
void clear_single_keys(const Block& b, Array& dS) {
  for (int64_t i = 0; i < b.rows; ++i)
    if (b.n[i] == 1 && !b.uniform[i]) dS.row(i).setZero();
}

/// dP, which eager replays before the dropout, D and their errors.
Gradients gradients(const HeadProblem& h, const Operands& x, const Block& b, const Matrix& O) {
  const Rounding& r = h.rounding;
  Gradients g;
  g.dP = b.rows_of(x.G) * b.keys_of(x.V).transpose();
  Array eT = r.e * r.k_dp * ((b.rows_of(x.G2) * b.keys_of(x.V2).transpose()).array().sqrt() + g.dP.abs());
  if (r.scores) {
    Replayed stored = replay(r.dtype, g.dP, kSure * eT);
    g.dP = std::move(stored.value);
    g.vdP = std::move(stored.variance);
    eT.setZero();
  }
  if (b.drops()) {
    g.dP *= b.M;
    eT *= b.M;
    if (r.scores) g.vdP *= b.M.square();
  }
  g.D = r.scores ? Column((b.P * g.dP).rowwise().sum()) : Column((b.rows_of(x.G).array() * O.array()).rowwise().sum());
  Column eD = 2 * r.e * (b.rows_of(x.G).array() * O.array()).abs().rowwise().sum();
  if (!r.d_from_output) eD = (b.P * (g.dP.abs().colwise() * Column(r.e * (2 + b.n.sqrt())) + eT)).rowwise().sum();
  g.eT = b.weights_of_d() * (eT.colwise() + eD);
  g.sD2 = (b.P.square() * b.eS2 * (g.dP.colwise() - g.D).square()).rowwise().sum();
  return g;
}

/// Eager: dS and s dS as they are stored, the latter for the products with K and Q. error2: square of dS's error.
Replayed stored_gradients(const HeadProblem& h, const Gradients& g, const Array& error2) {
  return replay_scaled(h, replay(h.rounding.dtype, g.dS, kSure * (error2.sqrt() + g.eT)));
}

void finish_gradients(const HeadProblem& h, const Block& b, Gradients& g) {
  const Rounding& r = h.rounding;
  g.dS = b.weights_of_d() * (g.dP.colwise() - g.D);
  if (g.sD2.size() > 0 && h.sinks.empty()) clear_single_keys(b, g.dS);
  g.wq = g.dS.square() * b.eS2 + visible(b, kFlushedDs2);
  if (b.capped()) g.wq += (b.P * (g.dP.colwise() - g.D)).square() * b.eJ2;
  if (!r.ds || r.scores) return;
  Array hS2 = largest_error2(r, b, g.dS, r.f_ds);
  if (r.ds_from_rounded_p) {
    const Array error2 = largest_error2(r, b, b.P, r.f) * (g.dP.colwise() - g.D).square();
    hS2 += b.capped() ? error2 * b.J.square() : error2;
  }
  if (g.sD2.size() > 0 && r.d_from_output) hS2 += r.u * r.u * (b.weights_of_d().square().colwise() * g.sD2);
  g.wq += hS2 / 3;
}

/// Writes dq and its variance (bQ^2 apart), adds this block's share to dk and its variance (fp32 accumulation included).
template <typename Out>
void add_dq_dk(const HeadProblem& h, const Operands& x, const Block& b, const Gradients& g, Out& out) {
  const Rounding& r = h.rounding;
  const double s2 = h.scale * h.scale;
  const auto K = b.keys_of(x.K);
  const Array dS2 = g.dS.square();
  const Matrix dq = h.scale * (g.dS.matrix() * K);
  Array w = g.wq;
  if (r.accumulation > 0) w += dS2.colwise() * (r.accumulation * b.n);
  Array variance = s2 * (w.matrix() * b.keys_of(x.K2)).array();
  variance += dq.array().square().colwise() * (b.eL2 + r.accumulation * b.n);
  if (g.sD2.size() > 0) variance += (b.weights_of_d().matrix() * K).array().square().colwise() * (s2 * g.sD2);
  variance += rounding_variances(r.dtype, dq).array();
  for (int64_t i = 0; i < b.rows; ++i)
    if (b.read[i].size() == 0) variance.row(i).setZero();
  rows(out.dq).middleRows(b.first, b.rows) = dq;
  rows(out.dq_variance).middleRows(b.first, b.rows) = variance.matrix();

  w = g.wq + dS2.colwise() * (b.eL2 + r.accumulation * static_cast<double>(h.queries * h.problem->group()));
  if (g.sD2.size() > 0) w += b.weights_of_d().square().colwise() * g.sD2;
  Map dk = rows(out.dk), dk_variance = rows(out.dk_variance);
  dk.middleRows(b.keys.begin, b.keys.size()).noalias() += h.scale * (g.dS.matrix().transpose() * b.rows_of(x.Q));
  dk_variance.middleRows(b.keys.begin, b.keys.size()).noalias() += s2 * (w.matrix().transpose() * b.rows_of(x.Q2));
}

/// Of dq: what the dS of keys that a dropout left out, -P D, add to the variance that independent ones would have. Where P are
/// equal so are they, and one that lies at a tie takes all of them to the same side.
Array rounded_together(const Operands& x, const Block& b, const Array& variance) {
  const Array left_out = (b.M == 0).select(variance, 0);
  const Array together = (left_out.sqrt().matrix() * b.keys_of(x.K)).array().square();
  return (together - (left_out.matrix() * b.keys_of(x.K2)).array()).cwiseMax(0);
}

/// Eager: dP, dS and s dS are replayed; what is uncertain about T and dP moves dS of its own key, by x, and through l and D those
/// of the others. With r = P (dP - D), J of the softcap, else 1: dS = r J, S' = dS/dT, mu = r (J S' + dJ/dT), x = mu^2 vT + (P
/// J)^2 vdP.
void add_eager_dq_dk(const HeadProblem& h, const Operands& x, const Block& b, const Gradients& g, HeadAnswer& out) {
  const double s2 = h.scale * h.scale;
  const auto K = b.keys_of(x.K);
  const auto K2 = b.keys_of(x.K2);
  const Array& PJ = b.weights_of_d();
  const Array dS2 = g.dS.square(), raw = b.P * (g.dP.colwise() - g.D), slope = score_by_product(b);
  const Array mu = raw * (b.capped() ? Array(b.J * slope + b.kT) : slope);
  const Array own = kMovedTogether * (mu.square() * b.vT + PJ.square() * g.vdP);
  const Column of_d = kMovedTogether * (raw.square() * b.vS + b.P.square() * g.vdP).rowwise().sum(),
               of_l = b.moved.rowwise().sum();
  const Array others = PJ.square().colwise() * of_d + dS2.colwise() * of_l;
  const Replayed stored = stored_gradients(h, g, own + others + g.wq);
  const Array PK2 = (PJ.matrix() * K).array().square(), dSK2 = (g.dS.matrix() * K).array().square();
  const Matrix dq = stored.value.matrix() * K;

  Array variance = s2 * ((Array(own + g.wq).matrix() * K2).array() + PK2.colwise() * of_d + dSK2.colwise() * of_l);
  variance += (stored.variance.matrix() * K2).array() + rounding_variances(h.rounding.dtype, dq).array();
  if (b.drops()) variance += rounded_together(x, b, stored.variance);
  for (int64_t i = 0; i < b.rows; ++i)
    if (b.read[i].size() == 0) variance.row(i).setZero();
  rows(out.dq).middleRows(b.first, b.rows) = dq;
  rows(out.dq_variance).middleRows(b.first, b.rows) = variance.matrix();

  const Array w = s2 * (own + others + g.wq) + stored.variance;
  Map dk = rows(out.dk), dk_variance = rows(out.dk_variance);
  dk.middleRows(b.keys.begin, b.keys.size()).noalias() += stored.value.matrix().transpose() * b.rows_of(x.Q);
  dk_variance.middleRows(b.keys.begin, b.keys.size()).noalias() += w.matrix().transpose() * b.rows_of(x.Q2);
}

/// bQ, and this block's share of bK.
void add_allowances(const HeadProblem& h, const Operands& x, const Block& b, const Gradients& g, HeadAnswer& out) {
  const double s = std::abs(h.scale);
  rows(out.dq_allowance).middleRows(b.first, b.rows) = s * (g.eT.matrix() * b.keys_of(x.Ka));
  Map bk = rows(out.dk_allowance);
  bk.middleRows(b.keys.begin, b.keys.size()).noalias() += s * (g.eT.matrix().transpose() * b.rows_of(x.Qa));
}

void add_dv(const HeadProblem& h, const Operands& x, const Block& b, HeadAnswer& out) {
  const Rounding& r = h.rounding;
  const Array P2 = b.P.square();
  Array w = P2 * b.eS2;
  if (r.scores)
    w += b.moved + P2.colwise() * b.moved.rowwise().sum();
  else
    w += P2.colwise() * (b.eL2 + r.accumulation * static_cast<double>(h.queries * h.problem->group()));
  w += visible(b, kFlushedP2);
  if (b.drops()) w *= b.M.square();
  if (r.scores)
    w += b.stored.variance;
  else if (r.ds)
    w += weight_error2(r, b) / 3;
  Map dv = rows(out.dv), variance = rows(out.dv_variance);
  dv.middleRows(b.keys.begin, b.keys.size()).noalias() += b.weights().matrix().transpose() * b.rows_of(x.G);
  variance.middleRows(b.keys.begin, b.keys.size()).noalias() += w.matrix().transpose() * b.rows_of(x.G2);
}

void add_sources(const HeadProblem& h, const Block& b, const Gradients& g, HeadAnswer& out) {
  const auto add = [&](const at::Tensor& sums, const Array& x) {
    entries(sums).segment(b.keys.begin, b.keys.size()) += x.colwise().sum().transpose();
  };
  const Array P2 = b.weights().square(), dS2 = g.dS.square();
  add(out.p2, P2);
  add(out.p4, P2.square());
  add(out.ds2, dS2);
  add(out.ds4, dS2.square());
  Entries dq_freedom = entries(out.dq_freedom);
  bool* seen = out.key_seen.mutable_data_ptr<bool>() + b.keys.begin;
  for (int64_t i = 0; i < b.rows; ++i) {
    dq_freedom[b.first + i] = b.uniform[i] ? 0 : effective_sources(dS2.row(i).sum(), dS2.row(i).square().sum(), h.d);
    if (h.rounding.scores) dq_freedom[b.first + i] = static_cast<double>(h.d);
    std::fill(seen + b.read[i].begin, seen + b.read[i].end, true);
  }
}

/// Uniform rows hold equal P, so that they round alike and their errors add up: (sum over those that keep a key of dO)^2 on dv.
struct UniformRows {
  Matrix dout_sum;  ///< [stored keys, dv]; empty: there is none
  double hB2 = 0;
};

void add_uniform_rows(const HeadProblem& h, const Operands& x, const Block& b, UniformRows& sum) {
  const Rounding& r = h.rounding;
  for (int64_t i = 0; i < b.rows; ++i) {
    if (!b.uniform[i] || !r.ds || r.scores) continue;
    if (sum.dout_sum.size() == 0) sum.dout_sum.setZero(h.stored_keys, h.dv);
    sum.hB2 = std::pow(std::max(r.u * b.P(i, 0) / (1 - h.problem->dropout.p), r.f), 2);
    for (int64_t j = 0; j < b.keys.size(); ++j)
      if (!b.drops() || b.M(i, j) != 0) sum.dout_sum.row(b.keys.begin + j) += x.G.row(b.first + i);
  }
}

HeadAnswer empty_answer(const HeadProblem& h) {
  const auto zeros = [](at::IntArrayRef sizes) { return at::zeros(sizes, at::kDouble); };
  HeadAnswer a;
  for (at::Tensor* t : {&a.o, &a.o_variance}) *t = zeros({1, h.queries, h.dv});
  for (at::Tensor* t : {&a.lse, &a.lse_sigma, &a.o_freedom, &a.dq_freedom}) *t = zeros({1, h.queries});
  for (at::Tensor* t : {&a.dq, &a.dq_variance, &a.dq_allowance}) *t = zeros({1, h.queries, h.d});
  for (at::Tensor* t : {&a.dk, &a.dk_variance, &a.dk_allowance}) *t = zeros({1, h.stored_keys, h.d});
  for (at::Tensor* t : {&a.dv, &a.dv_variance}) *t = zeros({1, h.stored_keys, h.dv});
  for (at::Tensor* t : {&a.p2, &a.p4, &a.ds2, &a.ds4}) *t = zeros({1, h.stored_keys});
  a.key_seen = at::zeros({1, h.stored_keys}, at::kBool);
  return a;
}

}  // namespace

HeadAnswer eigen_head(const HeadProblem& h) {
  HeadAnswer out = empty_answer(h);
  const Operands x(h);
  const Rounding& r = h.rounding;
  UniformRows uniform;
  std::vector<double> samples;
  for (int64_t first = 0, next = 0; first < h.queries; first = next) {
    const Block b = make_block(h, x, first);
    next = first + b.rows;
    const Array vP = stored_p_variance(r, b);
    const Matrix O = forward(h, x, b, vP, out);
    sample_scores(b, samples);
    Gradients g = gradients(h, x, b, O);
    if (r.d_from_output)
      g.sD2 += (vP * ((1 - h.problem->dropout.p) * g.dP).square()).rowwise().sum() +  // of dO.v: dP / M
               (b.rows_of(x.G2).array() * rounding_variances(r.dtype, O).array()).rowwise().sum();
    finish_gradients(h, b, g);
    if (r.scores)
      add_eager_dq_dk(h, x, b, g, out);
    else
      add_dq_dk(h, x, b, g, out);
    add_allowances(h, x, b, g, out);
    add_dv(h, x, b, out);
    add_sources(h, b, g, out);
    add_uniform_rows(h, x, b, uniform);
  }
  if (uniform.dout_sum.size() > 0) rows(out.dv_variance) += uniform.hB2 / 3 * uniform.dout_sum.cwiseAbs2();
  out.score_samples = at::from_blob(samples.data(), {static_cast<int64_t>(samples.size())}, at::kDouble).clone();
  out.sampled_heads.assign(samples.size(), 0);
  return out;
}

HeadGradients eigen_head_given_output(const HeadProblem& h, const at::Tensor& o) {
  HeadGradients out;
  for (at::Tensor* t : {&out.dq, &out.dq_variance}) *t = at::zeros({1, h.queries, h.d}, at::kDouble);
  for (at::Tensor* t : {&out.dk, &out.dk_variance}) *t = at::zeros({1, h.stored_keys, h.d}, at::kDouble);
  const Operands x(h);
  const ConstMap O(o.const_data_ptr<double>(), h.queries, h.dv);
  for (int64_t first = 0, next = 0; first < h.queries; first = next) {
    const Block b = make_block(h, x, first);
    next = first + b.rows;
    Gradients g;
    g.dP = products_with_values(x, b);
    g.D = (b.rows_of(x.G).array() * b.rows_of(O).array()).rowwise().sum();
    finish_gradients(h, b, g);
    add_dq_dk(h, x, b, g, out);
  }
  return out;
}

}  // namespace attnbench
