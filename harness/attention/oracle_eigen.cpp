// The oracle in Eigen: float64, one head at a time, in blocks of query rows against the keys that they see.
// Letters and formulas: error_model.hpp.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <Eigen/Core>

#include "harness/attention/oracle.hpp"

namespace attnbench {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Array = Eigen::Array<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Column = Eigen::ArrayXd;
using Map = Eigen::Map<Matrix>;
using ConstMap = Eigen::Map<const Matrix>;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kBlockElements = 32768;  ///< a 256 KiB matrix of doubles: a few of them fit a core's cache

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

/// The keys that query i sees: always one stretch.
Range visible_keys(const HeadProblem& h, int64_t i) {
  const int64_t diagonal = h.problem->align == Align::bottom_right ? i + h.keys - h.queries : i;
  Range r{0, h.keys};
  if (h.problem->mask == Mask::causal) r.end = std::min(r.end, diagonal + 1);
  if (h.problem->window && h.problem->window->left >= 0) r.begin = std::max(r.begin, diagonal - h.problem->window->left);
  if (h.problem->window && h.problem->window->right >= 0) r.end = std::min(r.end, diagonal + h.problem->window->right + 1);
  r.end = std::max(r.end, r.begin);
  return r;
}

/// An empty row reads nothing (zero), or every stored key with equal scores (uniform) or with NaN ones (nan).
Range keys_read(const HeadProblem& h, int64_t i) {
  const Range r = visible_keys(h, i);
  return r.size() > 0 || h.empty_row == Conventions::EmptyRow::zero ? r : Range{0, h.stored_keys};
}

/// Operands of a head and the powers of them that variances need.
struct Operands {
  explicit Operands(const HeadProblem& h)
      : Q(ConstMap(h.q, h.queries, h.d)),
        K(ConstMap(h.k, h.stored_keys, h.d)),
        V(ConstMap(h.v, h.stored_keys, h.dv)),
        G(ConstMap(h.dout, h.queries, h.dv)),
        Qa(Q.cwiseAbs()),
        Ka(K.cwiseAbs()),
        Q2(Q.cwiseAbs2()),
        K2(K.cwiseAbs2()),
        V2(V.cwiseAbs2()),
        G2(G.cwiseAbs2()) {}
  ConstMap Q, K, V, G;
  Matrix Qa, Ka, Q2, K2, V2, G2;
};

/// Some rows of a head against the keys that any of them reads; P is 0 where a row does not read.
struct Block {
  int64_t first = 0, rows = 0;
  Range keys;
  Array P, S, eS2;
  Column L, l, n;  ///< LSE, sum of exp relative to the row's largest score, keys read
  Column eL2;
  Column sL;
  std::vector<Range> read;  ///< relative to keys.begin
  std::vector<char> uniform;

  auto rows_of(const auto& m) const { return m.middleRows(first, rows); }
  auto keys_of(const auto& m) const { return m.middleRows(keys.begin, keys.size()); }
};

void softmax_row(const HeadProblem& h, Block& b, int64_t i) {
  const Range r = b.read[i];
  auto S = b.S.row(i).segment(r.begin, r.size());
  auto P = b.P.row(i).segment(r.begin, r.size());
  if (b.uniform[i]) {
    S.setConstant(h.empty_row == Conventions::EmptyRow::nan ? std::nan("") : 0);
    b.eS2.row(i).setConstant(16 * h.rounding.e * h.rounding.e);
  }
  const double m = b.uniform[i] ? 0 : S.maxCoeff();
  P = (S - m).exp();
  b.l[i] = P.sum();
  P /= b.l[i];
  b.L[i] = m + std::log(b.l[i]);
}

/// eS holds A until the P-weighted sum of it is known.
void scores(const HeadProblem& h, const Operands& x, Block& b) {
  const Rounding& r = h.rounding;
  b.S = h.scale * (b.rows_of(x.Q) * b.keys_of(x.K).transpose());
  Array A = std::abs(h.scale) * (b.rows_of(x.Qa) * b.keys_of(x.Ka).transpose());
  b.eS2 = (r.e * (4 + r.k_scores * A)).square();
  b.P.setZero(b.rows, b.keys.size());
  for (int64_t i = 0; i < b.rows; ++i) {
    if (b.read[i].size() > 0) softmax_row(h, b, i);
    if (b.uniform[i]) A.row(i).setZero();
  }
  b.sL = r.e * (4 + b.L.abs() + r.k_scores * (b.P * A).rowwise().sum() + b.n.sqrt());
  b.eL2 = r.accumulation > 0 ? Column(b.sL.square()) : Column((r.e * (2 + 2 * b.L.abs())).square());
}

Block make_block(const HeadProblem& h, const Operands& x, int64_t first, int64_t rows) {
  Block b;
  b.first = first;
  b.rows = rows;
  b.keys = {h.stored_keys, 0};
  b.L.setZero(rows);
  b.l.setOnes(rows);
  b.n.setZero(rows);
  for (int64_t i = 0; i < rows; ++i) {
    const Range r = keys_read(h, first + i);
    b.read.push_back(r);
    b.uniform.push_back(r.size() > 0 && visible_keys(h, first + i).size() == 0);
    b.n[i] = static_cast<double>(r.size());
    if (r.size() == 0) continue;
    b.keys.begin = std::min(b.keys.begin, r.begin);
    b.keys.end = std::max(b.keys.end, r.end);
  }
  if (b.keys.size() <= 0) b.keys = {0, 0};
  for (Range& r : b.read) r = r.size() > 0 ? Range{r.begin - b.keys.begin, r.end - b.keys.begin} : Range{0, 0};
  scores(h, x, b);
  return b;
}

/// max(u |x|, f)^2 where a key is read, else 0: the square of the largest rounding error.
template <typename X>
Array largest_error2(const Rounding& r, const Block& b, const X& x) {
  return (b.P != 0).select((r.u * x.abs()).max(r.f).square(), Array::Zero(b.rows, b.keys.size()));
}

/// hP^2.
Array stored_p_error2(const Rounding& r, const Block& b) {
  if (!r.p) return Array::Zero(b.rows, b.keys.size());
  if (r.p_normalised || r.f == 0) return largest_error2(r, b, b.P);
  const Column unnormalised = (r.f / b.l).square();
  return (b.P != 0).select((r.u * b.P).square().max(unnormalised.replicate(1, b.keys.size())),
                           Array::Zero(b.rows, b.keys.size()));
}

/// hS^2 of the eager profile: S is rounded, and s S once more unless s is a power of two.
Array score_error2(const Rounding& r, const Block& b) {
  return (r.scale_is_exact ? 1 : 2) * (b.P != 0).select((r.u * b.S).square(), Array::Zero(b.rows, b.keys.size()));
}

double effective_sources(double sum2, double sum4, int64_t channels) {
  return sum4 > 0 ? std::clamp(sum2 * sum2 / sum4, 1.0, static_cast<double>(channels)) : 1;
}

Matrix rounding_variances(Dtype dtype, const Matrix& x) {
  return x.unaryExpr([dtype](double y) { return rounding_variance(dtype, y); });
}

/// O, its variance and the LSE; returns O.
Matrix forward(const HeadProblem& h, const Operands& x, const Block& b, const Array& hP2, HeadAnswer& out) {
  const Rounding& r = h.rounding;
  const auto V = b.keys_of(x.V);
  const auto V2 = b.keys_of(x.V2);
  const Array P2 = b.P.square();
  Array w = P2 * b.eS2;
  if (r.scores) w += P2 * score_error2(r, b) / 3;
  const Matrix O = b.P.matrix() * V;
  const Matrix wV = w.matrix() * V;
  const Column total = w.rowwise().sum();
  w += hP2 / 3;
  if (r.accumulation > 0) w += P2.colwise() * (r.accumulation * b.n);
  Array variance = (w.matrix() * V2).array() - 2 * O.array() * wV.array();
  variance += O.array().square().colwise() * (total + r.accumulation * b.n);
  variance += rounding_variances(r.dtype, O).array();
  for (int64_t i = 0; i < b.rows; ++i) {
    const int64_t row = b.first + i;
    if (b.read[i].size() == 0) variance.row(i).setZero();
    if (b.uniform[i] && r.p) variance.row(i) += hP2(i, b.read[i].begin) / 3 * V.colwise().sum().array().square();
    out.lse[row] = b.read[i].size() == 0 || b.uniform[i] ? -kInfinity : b.L[i];
    out.lse_sigma[row] = b.sL[i];
    out.o_freedom[row] = b.uniform[i] ? 0 : effective_sources(P2.row(i).sum(), P2.row(i).square().sum(), h.dv);
    for (int64_t j = b.read[i].begin + (row * 7) % 16; !b.uniform[i] && j < b.read[i].end; j += 16)
      out.score_samples.push_back(b.S(i, j) - b.S.row(i).segment(b.read[i].begin, b.read[i].size()).maxCoeff());
  }
  Map(out.o.data(), h.queries, h.dv).middleRows(b.first, b.rows) = O;
  Map(out.o_variance.data(), h.queries, h.dv).middleRows(b.first, b.rows) = variance.matrix();
  return O;
}

/// Rounding S is a small, independent error: u max|S| <= 0.05, and the scores of a row of 8 keys or more spread over
/// at least 16 roundings.
bool rounding_scores_is_small(const HeadProblem& h, const Block& b) {
  for (int64_t i = 0; i < b.rows; ++i) {
    if (b.uniform[i] || b.read[i].size() == 0) continue;
    const auto S = b.S.row(i).segment(b.read[i].begin, b.read[i].size());
    const double largest = h.rounding.u * S.abs().maxCoeff();
    if (!(largest <= 0.05)) return false;
    if (S.size() >= 8 && !(std::sqrt((S - S.mean()).square().mean()) >= 16 * 2 * largest)) return false;
  }
  return true;
}

/// dP, dS and what the errors of D and of the fp32 accumulation add.
struct Gradients {
  Array dP, dS;
  Column D;
  Column sD2;  ///< empty where D is given: it has no error then
  Array wq;    ///< weights of K^2 in the variance of dq, and of Q^2 in that of dk
};

void finish_gradients(const HeadProblem& h, const Block& b, Gradients& g) {
  const Rounding& r = h.rounding;
  g.dS = b.P * (g.dP.colwise() - g.D);
  g.wq = g.dS.square() * b.eS2;
  if (!r.ds) return;
  Array hS2 = largest_error2(r, b, g.dS);
  if (g.sD2.size() > 0 && r.d_from_output) hS2 += r.u * r.u * (b.P.square().colwise() * g.sD2);
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
  if (g.sD2.size() > 0) variance += (b.P.matrix() * K).array().square().colwise() * (s2 * g.sD2);
  variance += rounding_variances(r.dtype, dq).array();
  for (int64_t i = 0; i < b.rows; ++i)
    if (b.read[i].size() == 0) variance.row(i).setZero();
  Map(out.dq.data(), h.queries, h.d).middleRows(b.first, b.rows) = dq;
  Map(out.dq_variance.data(), h.queries, h.d).middleRows(b.first, b.rows) = variance.matrix();

  w = g.wq + dS2.colwise() * (b.eL2 + r.accumulation * static_cast<double>(h.queries * h.problem->group()));
  if (g.sD2.size() > 0) w += b.P.square().colwise() * g.sD2;
  Map dk(out.dk.data(), h.stored_keys, h.d), dk_variance(out.dk_variance.data(), h.stored_keys, h.d);
  dk.middleRows(b.keys.begin, b.keys.size()).noalias() += h.scale * (g.dS.matrix().transpose() * b.rows_of(x.Q));
  dk_variance.middleRows(b.keys.begin, b.keys.size()).noalias() += s2 * (w.matrix().transpose() * b.rows_of(x.Q2));
}

/// Eager: the roundings of S, P, dP, dS and s dS, each carried through the softmax to first order. With c = hB (dP - D),
/// e = hB dP, g = P u |dP|, x = dS^2 hS^2, y = hS^2 dS P and PK = sum_j P_j K_j:
///   d dS_j / d P_k  = [j = k] (dP_k - D) - P_j dP_k
///   d dS_j / d dP_k = [j = k] P_j - P_j P_k
///   d dS_j / d S_k  = [j = k] dS_j - dS_j P_k - P_j dS_k
void add_eager_dq_dk(const HeadProblem& h, const Operands& x, const Block& b, const Gradients& g, HeadAnswer& out) {
  const Rounding& r = h.rounding;
  const double s2 = h.scale * h.scale;
  const auto K = b.keys_of(x.K);
  const Array P2 = b.P.square(), dS2 = g.dS.square();
  const Array hB = largest_error2(r, b, b.P).sqrt(), hS2 = score_error2(r, b);
  const Array c = hB * (g.dP.colwise() - g.D), e = hB * g.dP, gg = (b.P * (r.u * g.dP.abs()).max(r.f)).square();
  const Array xx = dS2 * hS2, y = hS2 * g.dS * b.P;
  Array rounded = largest_error2(r, b, g.dS);
  if (!r.scale_is_exact) rounded += (b.P != 0).select((r.u * g.dS.abs()).max(r.f / h.scale).square(), 0 * P2);
  const Column E = e.square().rowwise().sum(), G = gg.rowwise().sum(), W = xx.rowwise().sum(), X = y.rowwise().sum(),
               T = (P2 * hS2).rowwise().sum();
  const Array PK = b.P.matrix() * K, dSK = g.dS.matrix() * K;
  const Matrix dq = h.scale * dSK.matrix();

  Array variance = (Array(c.square() + gg + xx + rounded).matrix() * b.keys_of(x.K2)).array();
  variance -= 2 * PK * (Array(c * e + gg + xx).matrix() * K).array();
  variance += PK.square().colwise() * Column(E + G + W);
  variance += (PK * dSK).colwise() * Column(2 * X) - 2 * dSK * (y.matrix() * K).array() + dSK.square().colwise() * T;
  variance = s2 * (variance / 3 + (Array(dS2 * b.eS2).matrix() * b.keys_of(x.K2)).array());
  variance += rounding_variances(r.dtype, dq).array();
  for (int64_t i = 0; i < b.rows; ++i)
    if (b.read[i].size() == 0) variance.row(i).setZero();
  Map(out.dq.data(), h.queries, h.d).middleRows(b.first, b.rows) = dq;
  Map(out.dq_variance.data(), h.queries, h.d).middleRows(b.first, b.rows) = variance.matrix();

  Array w = c.square() - 2 * c * b.P * e + gg * (1 - 2 * b.P) + xx * (1 - 4 * b.P) + rounded;
  w += P2.colwise() * Column(E + G + W) + dS2.colwise() * T + (g.dS * b.P).colwise() * Column(2 * X);
  w = w / 3 + dS2 * b.eS2 + dS2.colwise() * b.eL2;
  Map dk(out.dk.data(), h.stored_keys, h.d), dk_variance(out.dk_variance.data(), h.stored_keys, h.d);
  dk.middleRows(b.keys.begin, b.keys.size()).noalias() += h.scale * (g.dS.matrix().transpose() * b.rows_of(x.Q));
  dk_variance.middleRows(b.keys.begin, b.keys.size()).noalias() += s2 * (w.matrix().transpose() * b.rows_of(x.Q2));
}

/// bQ, and this block's share of bK.
void add_allowances(const HeadProblem& h, const Operands& x, const Block& b, const Gradients& g, const Matrix& O,
                    HeadAnswer& out) {
  const Rounding& r = h.rounding;
  Column eD = 2 * r.e * (b.rows_of(x.G).array() * O.array()).abs().rowwise().sum();
  if (!r.d_from_output) eD = r.e * (2 + b.n.sqrt()) * (b.P * g.dP.abs()).rowwise().sum();
  Array eT = (b.rows_of(x.G2) * b.keys_of(x.V2).transpose()).array().sqrt() + g.dP.abs();
  eT = b.P * ((r.e * r.k_dp * eT).colwise() + eD);
  const double s = std::abs(h.scale);
  Map(out.dq_allowance.data(), h.queries, h.d).middleRows(b.first, b.rows) = s * (eT.matrix() * b.keys_of(x.Ka));
  Map bk(out.dk_allowance.data(), h.stored_keys, h.d);
  bk.middleRows(b.keys.begin, b.keys.size()).noalias() += s * (eT.matrix().transpose() * b.rows_of(x.Qa));
}

void add_dv(const HeadProblem& h, const Operands& x, const Block& b, HeadAnswer& out) {
  const Rounding& r = h.rounding;
  const Array P2 = b.P.square();
  Array w = P2 * b.eS2;
  if (r.scores) {
    const Array hS2 = score_error2(r, b) / 3;
    w += P2 * ((1 - 2 * b.P) * hS2) + P2.colwise() * (P2 * hS2).rowwise().sum();
  } else {
    w += P2.colwise() * (b.eL2 + r.accumulation * static_cast<double>(h.queries * h.problem->group()));
  }
  if (r.ds || r.scores) w += largest_error2(r, b, b.P) / 3;
  Map dv(out.dv.data(), h.stored_keys, h.dv), variance(out.dv_variance.data(), h.stored_keys, h.dv);
  dv.middleRows(b.keys.begin, b.keys.size()).noalias() += b.P.matrix().transpose() * b.rows_of(x.G);
  variance.middleRows(b.keys.begin, b.keys.size()).noalias() += w.matrix().transpose() * b.rows_of(x.G2);
}

void add_sources(const HeadProblem& h, const Block& b, const Gradients& g, HeadAnswer& out) {
  const auto add = [&](std::vector<double>& sums, const Array& x) {
    Eigen::Map<Eigen::Array<double, 1, Eigen::Dynamic>>(sums.data() + b.keys.begin, b.keys.size()) += x.colwise().sum();
  };
  const Array P2 = b.P.square(), dS2 = g.dS.square();
  add(out.p2, P2);
  add(out.p4, P2.square());
  add(out.ds2, dS2);
  add(out.ds4, dS2.square());
  for (int64_t i = 0; i < b.rows; ++i) {
    out.dq_freedom[b.first + i] = b.uniform[i] ? 0 : effective_sources(dS2.row(i).sum(), dS2.row(i).square().sum(), h.d);
    for (int64_t j = b.read[i].begin; j < b.read[i].end; ++j) out.key_seen[b.keys.begin + j] = 1;
  }
}

/// Uniform rows hold equal P, so that they round alike and their errors add up: (sum over them of dO)^2 on dv.
struct UniformRows {
  Eigen::ArrayXd dout_sum;
  double hB2 = 0;
};

void add_uniform_rows(const Operands& x, const Block& b, const Rounding& r, UniformRows& sum) {
  for (int64_t i = 0; i < b.rows; ++i) {
    if (!b.uniform[i] || !(r.ds || r.scores)) continue;
    sum.dout_sum += x.G.row(b.first + i).transpose().array();
    sum.hB2 = std::pow(std::max(r.u * b.P(i, 0), r.f), 2);
  }
}

HeadAnswer empty_answer(const HeadProblem& h) {
  const auto zeros = [](int64_t n) { return std::vector<double>(n, 0.0); };
  HeadAnswer a;
  a.o = a.o_variance = zeros(h.queries * h.dv);
  a.lse = a.lse_sigma = a.o_freedom = a.dq_freedom = zeros(h.queries);
  a.dq = a.dq_variance = a.dq_allowance = zeros(h.queries * h.d);
  a.dk = a.dk_variance = a.dk_allowance = zeros(h.stored_keys * h.d);
  a.dv = a.dv_variance = zeros(h.stored_keys * h.dv);
  a.p2 = a.p4 = a.ds2 = a.ds4 = zeros(h.stored_keys);
  a.key_seen.assign(h.stored_keys, 0);
  return a;
}

}  // namespace

HeadAnswer eigen_head(const HeadProblem& h) {
  HeadAnswer out = empty_answer(h);
  const Operands x(h);
  const Rounding& r = h.rounding;
  UniformRows uniform{Eigen::ArrayXd::Zero(h.dv)};
  const int64_t step = block_rows(h.stored_keys, kBlockElements);
  for (int64_t first = 0; first < h.queries; first += step) {
    const Block b = make_block(h, x, first, std::min(step, h.queries - first));
    const Array hP2 = stored_p_error2(r, b);
    const Matrix O = forward(h, x, b, hP2, out);
    if (r.scores && !rounding_scores_is_small(h, b)) out.has_power = false;
    Gradients g;
    g.dP = b.rows_of(x.G) * b.keys_of(x.V).transpose();
    g.D = (b.rows_of(x.G).array() * O.array()).rowwise().sum();
    g.sD2 = (b.P.square() * b.eS2 * (g.dP.colwise() - g.D).square()).rowwise().sum();
    if (r.d_from_output)
      g.sD2 += (hP2 / 3 * g.dP.square()).rowwise().sum() +
               (b.rows_of(x.G2).array() * rounding_variances(r.dtype, O).array()).rowwise().sum();
    finish_gradients(h, b, g);
    if (r.scores)
      add_eager_dq_dk(h, x, b, g, out);
    else
      add_dq_dk(h, x, b, g, out);
    add_allowances(h, x, b, g, O, out);
    add_dv(h, x, b, out);
    add_sources(h, b, g, out);
    add_uniform_rows(x, b, r, uniform);
  }
  Map variance(out.dv_variance.data(), h.stored_keys, h.dv);
  variance.array().rowwise() += (uniform.hB2 / 3 * uniform.dout_sum.square()).transpose();
  return out;
}

HeadGradients eigen_head_given_output(const HeadProblem& h, const double* o) {
  HeadGradients out;
  out.dq.assign(h.queries * h.d, 0);
  out.dk.assign(h.stored_keys * h.d, 0);
  out.dq_variance = out.dq;
  out.dk_variance = out.dk;
  const Operands x(h);
  const ConstMap O(o, h.queries, h.dv);
  const int64_t step = block_rows(h.stored_keys, kBlockElements);
  for (int64_t first = 0; first < h.queries; first += step) {
    const Block b = make_block(h, x, first, std::min(step, h.queries - first));
    Gradients g;
    g.dP = b.rows_of(x.G) * b.keys_of(x.V).transpose();
    g.D = (b.rows_of(x.G).array() * b.rows_of(O).array()).rowwise().sum();
    finish_gradients(h, b, g);
    add_dq_dk(h, x, b, g, out);
  }
  return out;
}

}  // namespace attnbench
