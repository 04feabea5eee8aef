#include "backends/attention/eigen_attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include <Eigen/Core>

namespace attnbench::eigen {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using View = Eigen::Map<RowMajor>;
using ConstView = Eigen::Map<const RowMajor>;

ConstView view(const Matrix& m) {
  return {m.data.data(), m.rows, m.columns};
}
View view(Matrix& m) {
  return {m.data.data(), m.rows, m.columns};
}

/// Keys [first, last) that query i sees.
struct Keys {
  int64_t first, last;
};
Keys keys_of(const Band& band, int64_t i, int64_t lk) {
  // A bound of an unlimited band is as far as int64 goes: it is clamped before i is added.
  const int64_t first = std::clamp<int64_t>(band.first, -i, lk - i) + i;
  const int64_t last = std::clamp<int64_t>(band.last, -i, lk - i) + i;
  return {first, std::max(first, last)};
}

/// The keys that any of the queries [i, i + rows) sees; bounds never fall as i grows.
Keys keys_of_block(const Band& band, int64_t i, int64_t rows, int64_t lk) {
  return {keys_of(band, i, lk).first, keys_of(band, i + rows - 1, lk).last};
}

/// Scores of queries [i, …) and keys [first, …), from products.
void finish_scores(RowMajor& s, const Scores& how, int64_t i, int64_t first) {
  s *= how.scale;
  if (how.softcap != 0) s = how.softcap * (s / how.softcap).array().tanh();
  if (how.slope == 0) return;
  for (Eigen::Index r = 0; r < s.rows(); r++)
    for (Eigen::Index c = 0; c < s.cols(); c++)
      s(r, c) -= how.slope * static_cast<float>(std::abs(i + r + how.offset - first - c));
}

/// Turns scores of the keys [keys.first, …) into probabilities, 0 where the key is hidden; lse [rows].
void softmax(RowMajor& scores, const Band& band, float sink, int64_t i, const Keys& keys, int64_t lk, float* lse) {
  for (Eigen::Index r = 0; r < scores.rows(); r++) {
    const Keys seen = keys_of(band, i + r, lk);
    const int64_t count = seen.last - seen.first;
    lse[r] = -std::numeric_limits<float>::infinity();
    if (count == 0) {
      scores.row(r).setZero();
      continue;
    }
    auto row = scores.row(r).segment(seen.first - keys.first, count).array();
    const float largest = std::max(row.maxCoeff(), sink);
    row = (row - largest).exp();
    const float sum = row.sum() + std::exp(sink - largest);
    row /= sum;
    lse[r] = largest + std::log(sum);
    scores.row(r).head(seen.first - keys.first).setZero();
    scores.row(r).tail(keys.last - seen.last).setZero();
  }
}

/// x o M, of queries [i, …) and keys [first, …).
void drop(RowMajor& x, const Dropout& dropout, int64_t i, int64_t first) {
  if (dropout.p == 0) return;
  for (Eigen::Index r = 0; r < x.rows(); r++)
    for (Eigen::Index c = 0; c < x.cols(); c++) x(r, c) *= dropout.factor(i + r, first + c);
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, 2014): every bit of x changes
/// every bit of the result.
uint64_t mixed(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

}  // namespace

bool Dropout::keeps(int64_t i, int64_t j) const {
  constexpr double kUnit = 0x1p-53;
  const uint64_t bits = mixed(mixed(head + static_cast<uint64_t>(i)) + static_cast<uint64_t>(j));
  return static_cast<double>(bits >> 11) * kUnit >= p;
}

uint64_t number_of_head(uint64_t seed, int64_t sequence, int64_t head) {
  return mixed(mixed(mixed(seed) + static_cast<uint64_t>(sequence)) + static_cast<uint64_t>(head));
}

std::string library_version() {
  return std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) + "." +
         std::to_string(EIGEN_MINOR_VERSION);
}

Result forward(const Matrix& q, const Matrix& k, const Matrix& v, const Band& band, const Scores& how) {
  Result result{Matrix(q.rows, v.columns), std::vector<float>(static_cast<size_t>(q.rows))};
  for (int64_t i = 0; i < q.rows; i += kQueryBlock) {
    const int64_t rows = std::min(kQueryBlock, q.rows - i);
    const Keys keys = keys_of_block(band, i, rows, k.rows);
    const int64_t count = std::max<int64_t>(0, keys.last - keys.first);
    RowMajor p = view(q).middleRows(i, rows) * view(k).middleRows(keys.first, count).transpose();
    finish_scores(p, how, i, keys.first);
    softmax(p, band, how.sink, i, keys, k.rows, result.lse.data() + i);
    drop(p, how.dropout, i, keys.first);
    view(result.o).middleRows(i, rows).noalias() = p * view(v).middleRows(keys.first, count);
  }
  return result;
}

void backward(const Matrix& q, const Matrix& k, const Matrix& v, const Matrix& dout, const Band& band, const Scores& how,
              Matrix& dq, Matrix& dk, Matrix& dv) {
  std::vector<float> lse(kQueryBlock);
  for (int64_t i = 0; i < q.rows; i += kQueryBlock) {
    const int64_t rows = std::min(kQueryBlock, q.rows - i);
    const Keys keys = keys_of_block(band, i, rows, k.rows);
    const int64_t count = std::max<int64_t>(0, keys.last - keys.first);
    const auto Q = view(q).middleRows(i, rows), K = view(k).middleRows(keys.first, count);
    const auto V = view(v).middleRows(keys.first, count), dO = view(dout).middleRows(i, rows);
    RowMajor p = Q * K.transpose();
    finish_scores(p, how, i, keys.first);
    softmax(p, band, how.sink, i, keys, k.rows, lse.data());
    RowMajor dp = dO * V.transpose();
    drop(dp, how.dropout, i, keys.first);
    const Eigen::VectorXf row_sum = p.cwiseProduct(dp).rowwise().sum();
    RowMajor ds = how.scale * p.cwiseProduct(dp.colwise() - row_sum);
    if (how.softcap != 0) {
      const RowMajor t = (how.scale / how.softcap * (Q * K.transpose())).array().tanh();
      ds.array() *= 1 - t.array().square();
    }
    view(dq).middleRows(i, rows).noalias() = ds * K;
    view(dk).middleRows(keys.first, count).noalias() += ds.transpose() * Q;
    drop(p, how.dropout, i, keys.first);
    view(dv).middleRows(keys.first, count).noalias() += p.transpose() * dO;
  }
}

}  // namespace attnbench::eigen
