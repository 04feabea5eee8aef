// The same-precision emulator: attention in tiles of 64 x 64, fp32 arithmetic, rounding where the profile says.
//   P unnormalised or not rounded: online softmax, P relative to the running maximum.
//   P normalised: one sweep for the row's maximum and sum, another for P V.
//   D from P o dP: one sweep for D, another for the gradients.
// It is a yardstick of ordinary error, not of right values: only its error energy is used.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>
#include <Eigen/Core>

#include "harness/attention/error_model.hpp"
#include "harness/attention/parallel.hpp"
#include "harness/attention/reference.hpp"
#include "harness/attention/tokens.hpp"

namespace attnbench {
namespace {

using Tile = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Row = Eigen::ArrayXf;

constexpr int64_t kTile = 64;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <Dtype dtype>
void round_tile(Tile& x) {
  float* data = x.data();
  for (Eigen::Index i = 0; i < x.size(); ++i) data[i] = round_to(dtype, data[i]);
}

void round_all(Dtype dtype, Tile& x) {
  if (dtype == Dtype::bf16) round_tile<Dtype::bf16>(x);
  if (dtype == Dtype::fp16) round_tile<Dtype::fp16>(x);
}

/// One query head of one sequence, in fp32 that holds the dtype's values.
struct EmulatedHead {
  const Problem* problem = nullptr;
  Conventions::EmptyRow empty_row = Conventions::EmptyRow::zero;
  Rounding rounding;
  float scale = 0;
  int64_t real_keys = 0;
  Tile Q, K, V, G;     ///< K, V: real keys first, then the padding that uniform empty rows read
  Tile O, dQ, dK, dV;  ///< O and dQ rounded, dK and dV not
  Row L, m, l, D;
  std::vector<char> sees_none;

  bool sees(int64_t i, int64_t j) const;
  void find_empty_rows();
  bool reads(int64_t i, int64_t j) const { return sees_none[i] ? empty_row != Conventions::EmptyRow::zero : sees(i, j); }
  bool tile_is_hidden(int64_t i0, int64_t rows, int64_t j0, int64_t columns) const;
  Tile scores(int64_t i0, int64_t rows, int64_t j0, int64_t columns) const;
  void forward();
  void row_statistics(int64_t i0, int64_t rows);
  void online_softmax(int64_t i0, int64_t rows, const Tile& S, Tile& P);
  Tile dp(int64_t i0, int64_t rows, int64_t j0, int64_t columns) const;
  Tile probabilities(int64_t i0, const Tile& S) const;
  void row_sums();
  void backward();
};

bool EmulatedHead::sees(int64_t i, int64_t j) const {
  if (j >= real_keys) return false;
  const int64_t past_diagonal = problem->align == Align::bottom_right ? j - i - real_keys + Q.rows() : j - i;
  if (problem->mask == Mask::causal && past_diagonal > 0) return false;
  if (!problem->window) return true;
  const auto [left, right] = *problem->window;
  return !(left >= 0 && past_diagonal < -left) && !(right >= 0 && past_diagonal > right);
}

void EmulatedHead::find_empty_rows() {
  sees_none.assign(Q.rows(), 1);
  for (int64_t i = 0; i < Q.rows(); ++i)
    for (int64_t j = 0; j < real_keys && sees_none[i]; ++j)
      if (sees(i, j)) sees_none[i] = 0;
}

bool EmulatedHead::tile_is_hidden(int64_t i0, int64_t rows, int64_t j0, int64_t columns) const {
  for (int64_t i = i0; i < i0 + rows; ++i)
    for (int64_t j = j0; j < j0 + columns; ++j)
      if (reads(i, j)) return false;
  return true;
}

/// s S, hidden ones -inf; an empty row that is not zero reads equal scores.
Tile EmulatedHead::scores(int64_t i0, int64_t rows, int64_t j0, int64_t columns) const {
  Tile S = Q.middleRows(i0, rows) * K.middleRows(j0, columns).transpose();
  if (rounding.scores) round_all(rounding.dtype, S);
  S *= scale;
  if (rounding.scores) round_all(rounding.dtype, S);
  const float filler = empty_row == Conventions::EmptyRow::nan ? std::nanf("") : 0;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      if (!reads(i0 + i, j0 + j))
        S(i, j) = -kInfinity;
      else if (sees_none[i0 + i])
        S(i, j) = filler;
    }
  }
  return S;
}

/// Rescales O and l to the new maximum and writes P relative to it.
void EmulatedHead::online_softmax(int64_t i0, int64_t rows, const Tile& S, Tile& P) {
  for (int64_t i = 0; i < rows; ++i) {
    const float previous = m[i0 + i], here = S.row(i).maxCoeff<Eigen::PropagateNaN>();
    const float largest = std::isnan(here) ? here : std::max(previous, here);
    if (largest == -kInfinity) {
      P.row(i).setZero();
      continue;
    }
    const float shrink = std::exp(previous - largest);
    P.row(i) = (S.row(i).array() - largest).exp();
    for (int64_t j = 0; j < S.cols(); ++j)
      if (S(i, j) == -kInfinity) P(i, j) = 0;
    l[i0 + i] = l[i0 + i] * shrink + P.row(i).sum();
    O.row(i0 + i) *= shrink;
    m[i0 + i] = largest;
  }
}

/// The maximum and the sum of exp of every row, before any P is formed.
void EmulatedHead::row_statistics(int64_t i0, int64_t rows) {
  Tile unused(rows, 0);
  for (int64_t j0 = 0; j0 < K.rows(); j0 += kTile) {
    const int64_t columns = std::min(kTile, K.rows() - j0);
    if (tile_is_hidden(i0, rows, j0, columns)) continue;
    unused.resize(rows, columns);
    online_softmax(i0, rows, scores(i0, rows, j0, columns), unused);
  }
}

void EmulatedHead::forward() {
  const Rounding& r = rounding;
  O.setZero(Q.rows(), V.cols());
  m.setConstant(Q.rows(), -kInfinity);
  l.setZero(Q.rows());
  L.setConstant(Q.rows(), -kInfinity);
  for (int64_t i0 = 0; i0 < Q.rows(); i0 += kTile) {
    const int64_t rows = std::min(kTile, Q.rows() - i0);
    if (r.p_normalised) row_statistics(i0, rows);
    for (int64_t j0 = 0; j0 < K.rows(); j0 += kTile) {
      const int64_t columns = std::min(kTile, K.rows() - j0);
      if (tile_is_hidden(i0, rows, j0, columns)) continue;
      const Tile S = scores(i0, rows, j0, columns);
      Tile P(rows, columns);
      if (r.p_normalised) {
        P = probabilities(i0, S);
      } else {
        online_softmax(i0, rows, S, P);
      }
      if (r.p) round_all(r.dtype, P);
      O.middleRows(i0, rows).noalias() += P * V.middleRows(j0, columns);
    }
    for (int64_t i = i0; i < i0 + rows; ++i) {
      if (m[i] == -kInfinity && !std::isnan(l[i])) continue;
      if (!r.p_normalised) O.row(i) /= l[i];
      L[i] = m[i] + std::log(l[i]);
    }
  }
  round_all(r.dtype, O);
}

/// The softmax itself, exp(S - m) / l, where it is what gets rounded or D is summed over it; else exp(S - L).
Tile EmulatedHead::probabilities(int64_t i0, const Tile& S) const {
  const bool normalises = rounding.p_normalised || !rounding.d_from_output;
  Tile P(S.rows(), S.cols());
  for (int64_t i = 0; i < S.rows(); ++i) {
    const float shift = normalises ? m[i0 + i] : L[i0 + i];
    P.row(i) = (S.row(i).array() - shift).exp();
    if (normalises) P.row(i) /= l[i0 + i];
    for (int64_t j = 0; j < S.cols(); ++j)
      if (S(i, j) == -kInfinity) P(i, j) = 0;
  }
  return P;
}

Tile EmulatedHead::dp(int64_t i0, int64_t rows, int64_t j0, int64_t columns) const {
  Tile dP = G.middleRows(i0, rows) * V.middleRows(j0, columns).transpose();
  if (rounding.scores) round_all(rounding.dtype, dP);
  return dP;
}

/// D, from the rounded O or from P o dP.
void EmulatedHead::row_sums() {
  D = (G.array() * O.array()).rowwise().sum();
  if (rounding.d_from_output) return;
  D.setZero();
  for (int64_t i0 = 0; i0 < Q.rows(); i0 += kTile) {
    const int64_t rows = std::min(kTile, Q.rows() - i0);
    for (int64_t j0 = 0; j0 < K.rows(); j0 += kTile) {
      const int64_t columns = std::min(kTile, K.rows() - j0);
      if (tile_is_hidden(i0, rows, j0, columns)) continue;
      const Tile P = probabilities(i0, scores(i0, rows, j0, columns));
      D.segment(i0, rows) += (P.array() * dp(i0, rows, j0, columns).array()).rowwise().sum();
    }
  }
}

void EmulatedHead::backward() {
  const Rounding& r = rounding;
  dQ.setZero(Q.rows(), Q.cols());
  dK.setZero(K.rows(), K.cols());
  dV.setZero(V.rows(), V.cols());
  row_sums();
  for (int64_t i0 = 0; i0 < Q.rows(); i0 += kTile) {
    const int64_t rows = std::min(kTile, Q.rows() - i0);
    for (int64_t j0 = 0; j0 < K.rows(); j0 += kTile) {
      const int64_t columns = std::min(kTile, K.rows() - j0);
      if (tile_is_hidden(i0, rows, j0, columns)) continue;
      Tile P = probabilities(i0, scores(i0, rows, j0, columns));
      Tile dS = P.array() * (dp(i0, rows, j0, columns).array().colwise() - D.segment(i0, rows));
      if (r.ds || r.scores) round_all(r.dtype, P);
      if (r.ds || r.scores) round_all(r.dtype, dS);
      if (r.scores) dS *= scale;
      if (r.scores) round_all(r.dtype, dS);
      dQ.middleRows(i0, rows).noalias() += dS * K.middleRows(j0, columns);
      dK.middleRows(j0, columns).noalias() += dS.transpose() * Q.middleRows(i0, rows);
      dV.middleRows(j0, columns).noalias() += P.transpose() * G.middleRows(i0, rows);
    }
  }
  if (!r.scores) dQ *= scale;
  if (!r.scores) dK *= scale;
  round_all(r.dtype, dQ);
  if (r.gqa_partials) round_all(r.dtype, dK);
  if (r.gqa_partials) round_all(r.dtype, dV);
}

using RowMap = Eigen::Map<Eigen::Array<float, 1, Eigen::Dynamic>>;

/// A contiguous fp32 tensor [… rows …, heads, channels].
struct Storage {
  at::Tensor tensor;
  int64_t heads = 0, channels = 0;

  RowMap row(int64_t storage_row, int64_t head) const {
    return {tensor.data_ptr<float>() + (storage_row * heads + head) * channels, channels};
  }
};

Storage read_storage(const at::Tensor& t, int64_t heads, int64_t channels) {
  return {t.detach().to(at::kCPU).to(at::kFloat).contiguous(), heads, channels};
}

/// In the layout of `like`, filled with `value`.
Storage new_storage(const at::Tensor& like, int64_t heads, int64_t channels, float value) {
  std::vector<int64_t> sizes = like.sizes().vec();
  sizes[sizes.size() - 2] = heads;
  sizes.back() = channels;
  return {at::full(sizes, value, at::kFloat), heads, channels};
}

class Emulation {
 public:
  Emulation(const Case& c, const Inputs& inputs, const Profile& profile, const Conventions& conventions);
  Outputs outputs();

 private:
  void emulate_group(int64_t sequence, int64_t key_head);
  std::vector<int64_t> key_rows(int64_t sequence) const;

  const Problem& problem_;
  const Inputs& inputs_;
  Conventions conventions_;
  Rounding rounding_;
  Storage q_, k_, v_, dout_, o_, lse_, dq_, dk_, dv_;
  std::vector<int64_t> q_first_, k_first_;
};

Emulation::Emulation(const Case& c, const Inputs& inputs, const Profile& profile, const Conventions& conventions)
    : problem_(c.problem), inputs_(inputs), conventions_(conventions), rounding_(rounding_of(profile, c.problem, inputs.scale)) {
  const Problem& p = problem_;
  q_ = read_storage(inputs.q, p.hq, p.d);
  dout_ = read_storage(inputs.dout, p.hq, p.dv);
  k_ = read_storage(inputs.k, p.hkv, p.d);
  v_ = read_storage(inputs.v, p.hkv, p.dv);
  o_ = new_storage(inputs.q, p.hq, p.dv, 0);
  lse_ = new_storage(inputs.q, p.hq, 1, -kInfinity);
  dq_ = new_storage(inputs.q, p.hq, p.d, 0);
  dk_ = new_storage(inputs.k, p.hkv, p.d, 0);
  dv_ = new_storage(inputs.k, p.hkv, p.dv, 0);
  q_first_ = offsets_of(inputs.lengths.q);
  k_first_ = offsets_of(inputs.lengths.k);
}

/// Storage rows of a sequence's real keys, then of its padding where empty rows read that too.
std::vector<int64_t> Emulation::key_rows(int64_t sequence) const {
  const auto begin = inputs_.k_rows.begin() + k_first_[sequence], end = inputs_.k_rows.begin() + k_first_[sequence + 1];
  std::vector<int64_t> rows(begin, end);
  const int64_t pitch = inputs_.lengths.k_pitch;
  if (problem_.layout == Layout::packed || conventions_.empty_row != Conventions::EmptyRow::uniform) return rows;
  for (int64_t row = sequence * pitch; row < (sequence + 1) * pitch; ++row)
    if (std::find(begin, end, row) == end) rows.push_back(row);
  return rows;
}

void Emulation::emulate_group(int64_t sequence, int64_t key_head) {
  const Problem& p = problem_;
  const int64_t queries = inputs_.lengths.q[sequence];
  const int64_t* q_rows = inputs_.q_rows.data() + q_first_[sequence];
  const std::vector<int64_t> k_rows = key_rows(sequence);
  const int64_t stored = static_cast<int64_t>(k_rows.size());
  EmulatedHead h;
  h.problem = &p;
  h.empty_row = conventions_.empty_row;
  h.rounding = rounding_;
  h.scale = static_cast<float>(inputs_.scale);
  h.real_keys = inputs_.lengths.k[sequence];
  h.Q.resize(queries, p.d), h.G.resize(queries, p.dv), h.K.resize(stored, p.d), h.V.resize(stored, p.dv);
  for (int64_t j = 0; j < stored; ++j) h.K.row(j) = k_.row(k_rows[j], key_head), h.V.row(j) = v_.row(k_rows[j], key_head);
  Tile dK = Tile::Zero(stored, p.d), dV = Tile::Zero(stored, p.dv);
  for (int64_t head = key_head * p.group(); head < (key_head + 1) * p.group(); ++head) {
    for (int64_t i = 0; i < queries; ++i) h.Q.row(i) = q_.row(q_rows[i], head), h.G.row(i) = dout_.row(q_rows[i], head);
    h.find_empty_rows();
    h.forward();
    h.backward();
    for (int64_t i = 0; i < queries; ++i) {
      o_.row(q_rows[i], head) = h.O.row(i);
      dq_.row(q_rows[i], head) = h.dQ.row(i);
      lse_.row(q_rows[i], head).setConstant(h.sees_none[i] ? -kInfinity : h.L[i]);
    }
    dK += h.dK;
    dV += h.dV;
  }
  round_all(rounding_.dtype, dK);
  round_all(rounding_.dtype, dV);
  for (int64_t j = 0; j < h.real_keys; ++j) dk_.row(k_rows[j], key_head) = dK.row(j), dv_.row(k_rows[j], key_head) = dV.row(j);
}

Outputs Emulation::outputs() {
  const int64_t sequences = static_cast<int64_t>(inputs_.lengths.q.size());
  for_each_in_parallel(sequences * problem_.hkv, [&](int64_t i) { emulate_group(i / problem_.hkv, i % problem_.hkv); });
  const auto dtype = inputs_.q.scalar_type();
  return {o_.tensor.to(dtype), lse_.tensor.squeeze(-1), dq_.tensor.to(dtype), dk_.tensor.to(dtype), dv_.tensor.to(dtype)};
}

}  // namespace

Outputs emulate(const Case& c, const Inputs& inputs, const Profile& profile, const Conventions& conventions) {
  return Emulation(c, inputs, profile, conventions).outputs();
}

}  // namespace attnbench
