// Attention of one sequence and one key head in float32 with Eigen, as the definition reads: whole rows of scores, no online
// softmax, gradients by hand.
//
//   T = scale Q K^T,  S = T or softcap tanh(T / softcap), less slope |i + offset - j|
//   P = softmax(S) over the visible keys and the sink,  LSE = ln sum exp S,  O = (P o M) V
//   dV = (P o M)^T dO,  dP = M o (dO V^T),  D = rowsum(P o dP),  dS = P o (dP - D),  dT = dS or dS o (1 - tanh^2(T / softcap))
//   dQ = scale dT K,  dK = scale dT^T Q
// M is 1, or with dropout 0 where an element is dropped and 1 / (1 - p) elsewhere: a hash of where it stands decides, so that a
// backward drops what its forward did without keeping a mask.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace attnbench::eigen {

constexpr int64_t kQueryBlock = 64;  ///< rows of scores that are held at a time

/// Eigen's, as in "3.4.0".
std::string library_version();

/// A matrix of float32, rows * columns, row by row.
struct Matrix {
  int64_t rows = 0, columns = 0;
  std::vector<float> data;
  Matrix() = default;
  Matrix(int64_t r, int64_t c) : rows(r), columns(c), data(static_cast<size_t>(r * c)) {}
  float* row(int64_t r) { return data.data() + r * columns; }
  const float* row(int64_t r) const { return data.data() + r * columns; }
};

/// Query i sees the keys j with i + first <= j < i + last, within the sequence.
struct Band {
  int64_t first = 0, last = 0;
};

/// Of one query head of a sequence.
struct Dropout {
  double p = 0;       ///< what share is dropped; 0: none
  uint64_t head = 0;  ///< a number of the head's own
  bool keeps(int64_t i, int64_t j) const;
  float factor(int64_t i, int64_t j) const { return keeps(i, j) ? static_cast<float>(1 / (1 - p)) : 0; }
};

/// Dropout::head of a query head of a sequence under a seed.
uint64_t number_of_head(uint64_t seed, int64_t sequence, int64_t head);

/// How products become scores, and what is kept of P.
struct Scores {
  float scale = 1;
  float softcap = 0;                                     ///< 0: none
  float slope = 0;                                       ///< of ALiBi; 0: none
  int64_t offset = 0;                                    ///< of ALiBi's diagonal
  float sink = -std::numeric_limits<float>::infinity();  ///< that, -inf: none
  Dropout dropout;
};

/// o [lq, dv]; lse [lq], -inf for a query that sees no key, whose o is 0.
struct Result {
  Matrix o;
  std::vector<float> lse;
};
Result forward(const Matrix& q, const Matrix& k, const Matrix& v, const Band& band, const Scores& how);

/// dq is written; dk and dv are added to, since the query heads of a group share them.
void backward(const Matrix& q, const Matrix& k, const Matrix& v, const Matrix& dout, const Band& band, const Scores& how,
              Matrix& dq, Matrix& dk, Matrix& dv);

}  // namespace attnbench::eigen
