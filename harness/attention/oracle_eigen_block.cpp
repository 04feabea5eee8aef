#include "harness/attention/oracle_eigen_block.hpp"

#include <algorithm>
#include <cmath>

#include "harness/attention/element.hpp"

namespace attnbench::eigen_oracle {
namespace {

constexpr int64_t kBlockElements = 32768;  ///< a 256 KiB matrix of doubles: a few of them fit a core's cache
constexpr double kMostLog = 104;           ///< of 1 / P, for the smallest P in fp32

int64_t block_rows(int64_t keys) {
  return std::clamp<int64_t>(kBlockElements / std::max<int64_t>(keys, 1), 16, 128);
}

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

void softmax_row(const HeadProblem& h, Block& b, int64_t i) {
  const Range r = b.read[i];
  auto S = b.S.row(i).segment(r.begin, r.size());
  auto P = b.P.row(i).segment(r.begin, r.size());
  if (b.uniform[i]) {
    S.setConstant(h.empty_row == Conventions::EmptyRow::nan ? std::nan("") : 0);
    b.eS2.row(i).setConstant(16 * h.rounding.e * h.rounding.e);
  }
  const double sink = h.sinks.empty() || b.uniform[i] ? -kInfinity : h.sinks.front();
  const double m = b.uniform[i] ? 0 : std::max(S.maxCoeff(), sink);
  P = (S - m).exp();
  b.l[i] = P.sum() + std::exp(sink - m);
  P /= b.l[i];
  b.L[i] = m + std::log(b.l[i]);
}

/// S becomes c tanh(S / c). `A` is what is left of the products' error, and tanh's.
void cap(const HeadProblem& h, Block& b, Array& A) {
  const double c = h.problem->softcap;
  const Rounding& r = h.rounding;
  const Array t = (b.S / c).tanh();
  b.S = c * t;
  b.J = 1 - t.square();
  b.kT = -2 / c * t * b.J;
  b.eJ2 = (r.e * (4 + 2 * r.k_scores / c * A * b.J * t.abs())).square();
  A = A * b.J + 4 / r.k_scores * b.S.abs();
}

/// Adds ALiBi's bias, its rounding and that of the sum.
void add_bias(const HeadProblem& h, Block& b, Array& A) {
  const int64_t offset = h.problem->align == Align::bottom_right ? h.keys - h.queries : 0;
  for (int64_t i = 0; i < b.rows; ++i)
    for (int64_t j = 0; j < b.keys.size(); ++j) {
      const double bias = h.slopes.front() * static_cast<double>(std::abs(b.first + i + offset - b.keys.begin - j));
      b.S(i, j) -= bias;
      A(i, j) += (2 * bias + std::abs(b.S(i, j))) / h.rounding.k_scores;
    }
}

/// T as it is stored: Q K^T is rounded, and s times that once more.
void replay_products(const HeadProblem& h, const Operands& x, Block& b) {
  const Rounding& r = h.rounding;
  const Array sums = b.rows_of(x.Q) * b.keys_of(x.K).transpose();
  const Array terms = b.rows_of(x.Qa) * b.keys_of(x.Ka).transpose();
  Replayed T = replay_scaled(h, replay(r.dtype, sums, kSure * r.e * r.k_scores * terms));
  b.S = std::move(T.value);
  b.vT = std::move(T.variance);
}

/// P M as it is stored, and what the softmax in fp32 of stored products leaves uncertain about P. A: of the options.
void replay_probabilities(const Rounding& r, const Array& A, Block& b) {
  const Array P2 = b.P.square();
  const Array depth = b.P.log().abs().min(kMostLog).colwise() + b.n.sqrt();
  b.eS2 = (b.P != 0).select((r.e * (4 + depth + r.k_scores * A)).square(), 0 * P2);
  b.vS = score_by_product(b).square() * b.vT;
  b.moved = kMovedTogether * P2 * b.vS;
  const Array error2 = P2 * b.eS2 + b.moved + P2.colwise() * Column(b.moved.rowwise().sum());
  b.stored = b.drops() ? replay(r.dtype, b.PM, kSure * b.M * error2.sqrt()) : replay(r.dtype, b.P, kSure * error2.sqrt());
}

/// eS holds A until the P-weighted sum of it is known.
void scores(const HeadProblem& h, const Operands& x, Block& b) {
  const Rounding& r = h.rounding;
  Array A;
  if (r.scores) {
    replay_products(h, x, b);
    A.setZero(b.rows, b.keys.size());
  } else {
    b.S = h.scale * (b.rows_of(x.Q) * b.keys_of(x.K).transpose());
    A = std::abs(h.scale) * (b.rows_of(x.Qa) * b.keys_of(x.Ka).transpose());
  }
  if (h.problem->softcap != 0) cap(h, b, A);
  if (!h.slopes.empty()) add_bias(h, b, A);
  b.eS2 = (r.e * (4 + r.k_scores * A)).square();
  b.P.setZero(b.rows, b.keys.size());
  for (int64_t i = 0; i < b.rows; ++i) {
    if (b.read[i].size() > 0) softmax_row(h, b, i);
    if (b.uniform[i]) A.row(i).setZero();
  }
  if (b.capped()) b.PJ = b.P * b.J;
  if (h.factors.defined()) {
    const ConstMap M(h.factors.const_data_ptr<double>(), h.queries, h.stored_keys);
    b.M = M.block(b.first, b.keys.begin, b.rows, b.keys.size());
    b.PM = b.P * b.M;
  }
  if (r.scores) replay_probabilities(r, A, b);
  b.sL = r.e * (4 + b.L.abs() + r.k_scores * (b.P * A).rowwise().sum() + b.n.sqrt());
  b.eL2 = r.accumulation > 0 ? Column(b.sL.square()) : Column((r.e * (2 + 2 * b.L.abs())).square());
}

}  // namespace

Block make_block(const HeadProblem& h, const Operands& x, int64_t first) {
  const int64_t rows = std::min(block_rows(h.stored_keys), h.queries - first);
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

Replayed replay(Dtype dtype, const Array& x, const Array& tolerance) {
  Replayed out{x, Array::Zero(x.rows(), x.cols())};
  for (int64_t i = 0; i < x.size(); ++i) {
    const double exact = x.data()[i], doubt = tolerance.data()[i], rounded = round_to(dtype, static_cast<float>(exact));
    if (!std::isfinite(rounded)) continue;
    out.value.data()[i] = rounded;
    // Within the doubt may lie a power of two, below which ties are closer.
    const double to_tie = ulp(dtype, std::max(std::abs(exact) - doubt, 0.0)) / 2 - std::abs(exact - rounded);
    if (!(to_tie > doubt)) out.variance.data()[i] = std::pow(ulp(dtype, std::abs(exact) + doubt), 2) / 2;
  }
  return out;
}

Replayed replay_scaled(const HeadProblem& h, Replayed x) {
  x.value *= h.scale;
  x.variance *= h.scale * h.scale;
  Replayed product = replay(h.rounding.dtype, x.value, kSure * h.rounding.e * x.value.abs() + (2 * x.variance).sqrt());
  product.variance += x.variance;
  return product;
}

Array stored_p_variance(const Rounding& r, const Block& b) {
  if (!r.p) return Array::Zero(b.rows, b.keys.size());
  if (r.scores) return b.stored.variance;
  if (r.p_normalised || r.f == 0) return weight_error2(r, b) / 3;
  const Column unnormalised = (r.f / b.l).square();
  return (b.weights() != 0)
      .select((r.u * b.weights()).square().max(unnormalised.replicate(1, b.keys.size())) / 3, Array::Zero(b.rows, b.keys.size()));
}

Array weight_error2(const Rounding& r, const Block& b) {
  return (b.weights() != 0).select(largest_error2(r, b, b.weights(), r.f), Array::Zero(b.rows, b.keys.size()));
}

Array score_by_product(const Block& b) {
  Array slope = b.capped() ? b.J : Array::Ones(b.rows, b.keys.size());
  for (int64_t i = 0; i < b.rows; ++i)
    if (b.uniform[i]) slope.row(i).setZero();
  return slope;
}

}  // namespace attnbench::eigen_oracle
