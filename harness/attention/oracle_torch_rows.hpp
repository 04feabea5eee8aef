// What the oracle in LibTorch computes of one block of query rows between its products: steps on rows (row_team.hpp), from
// scores to what the next products multiply. Letters and formulas: error_model.hpp.
// Everything is float64 where the oracle computes. A matrix is [heads, rows, keys] of the block; numbers that a row has one of
// are [heads, rows]; tensors over queries are [heads, queries, channels] of all blocks. Null: there is none.
#pragma once

#include <cstdint>

#include "harness/attention/element.hpp"
#include "harness/attention/error_model.hpp"

namespace attnbench::torch_oracle {

constexpr int64_t kSampledKeys = 16;

/// The first key of a row that is sampled.
ATTNBENCH_ON_BOTH inline int64_t first_sample(int64_t begin, int64_t query) {
  return begin + query * 7 % kSampledKeys;
}

/// What is the same for every block.
struct Setting {
  bool on_gpu = false;
  Rounding rounding;
  Spacing spacing;
  double scale = 0, softcap = 0;
  double kept = 1;    ///< 1 - p of the dropout
  double filler = 0;  ///< score of the keys of a filled row: 0, or NaN
  int64_t queries = 0, stored_keys = 0, d = 0, dv = 0;
  int64_t heads_of_sequence = 0;
  const int64_t *begin = nullptr, *end = nullptr, *empty = nullptr;  ///< [sequences, queries]: the keys that it reads
  const int64_t *diagonals = nullptr, *terms = nullptr;              ///< [sequences]: key - query; queries x group of a key
  const double *slopes = nullptr, *sinks = nullptr;                  ///< [heads]
  const double* factors = nullptr;                                   ///< M, [heads, queries, stored keys]
  const int64_t* first_samples = nullptr;                            ///< [sampled heads, queries]; see Samples
  int64_t sampled_heads = 0;
};

/// What a row has one of.
struct RowNumbers {
  double least, eL2;   ///< least: smallest rounding error of the P that V is multiplied by
  double shifted;      ///< eager: sum of w
  double total;        ///< sum of P^2 eS^2
  double largest_vP;   ///< variance of the P that V is multiplied by
  double D, absD, gu;  ///< sums of dO O, |dO O| and dO^2 ulp(O)^2/12
  double sD2;          ///< 0 where D is given
  double of_d;         ///< eager: what is uncertain about D
};

/// The matrices of a block. What a step no longer reads is overwritten by what the next products read.
struct Matrices {
  double *P = nullptr, *e2 = nullptr;  ///< in: Q K^T, |Q| |K|^T; then P, eS^2
  double* W = nullptr;                 ///< what V is multiplied by: P M, in eager as it is stored; P's own memory where it is P
  double *tanh = nullptr, *eJ2 = nullptr;    ///< of softcap
  double *vT = nullptr, *vP = nullptr;       ///< eager: variances of T and of the stored P M
  double *w_mean = nullptr, *w_o = nullptr;  ///< weights of V and V^2 in var o; null where D is given
  double *dS = nullptr, *w_q = nullptr;      ///< in: dO V^T, dO^2 V^2^T; then dS as K and Q are multiplied by it, weights of K^2
  double *w_k = nullptr, *w_v = nullptr;     ///< weights of Q^2 and dO^2 in var dk and var dv: the memory of w_o and w_mean
  double *PJ = nullptr, *eT = nullptr;       ///< weights of D, P's own memory without softcap; eT
  double* exact_dS = nullptr;                ///< eager: dS before it is stored
  double *left_out = nullptr, *left_out_root = nullptr;  ///< eager with dropout: variances of dS where M is 0, and their roots
};

struct BlockRows {
  Setting s;
  Matrices m;
  int64_t heads = 0, first = 0, rows = 0, key = 0, keys = 0;
  RowNumbers* numbers = nullptr;  ///< [heads, rows]
};

/// P, its errors and what follows from them: [heads, queries].
struct OfScores {
  double *lse = nullptr, *sigma = nullptr, *o_freedom = nullptr;
  double* samples = nullptr;  ///< S - m, [samples]
};
void softmax_rows(const BlockRows& b, const OfScores& out);

/// O and its variance, D and its errors.
struct OfOutput {
  const double *O = nullptr, *mean = nullptr, *squares = nullptr;  ///< products with V, V and V^2: [heads, rows, dv]
  const double* uniform = nullptr;  ///< sum of V over the keys of a filled row that are kept: [heads, rows or 1, dv]
  int64_t uniform_rows = 0;
  const double* dout = nullptr;              ///< [heads, queries, dv]
  double *o = nullptr, *variance = nullptr;  ///< [heads, queries, dv]
};
void output_rows(const BlockRows& b, const OfOutput& out);

/// D alone, of an O that is given: [heads, queries, dv] both.
void given_output_rows(const BlockRows& b, const double* o, const double* dout);

/// dS, its errors, and dq_freedom [heads, queries]. given: of a D that is given.
void gradient_rows(const BlockRows& b, bool given, double* dq_freedom);

/// dq and its variance.
struct OfQueries {
  const double *dq = nullptr, *squares = nullptr, *allowance = nullptr;  ///< products with K, K^2 and |K|: [heads, rows, d]
  const double *of_d = nullptr, *exact = nullptr;                        ///< with K: weights of D; eager: dS before it is stored
  const double *left_out = nullptr, *left_out_root = nullptr;            ///< eager with dropout: with K^2 and with K
  double *value = nullptr, *variance = nullptr, *b = nullptr;            ///< [heads, queries, d]
};
void query_gradient_rows(const BlockRows& b, const OfQueries& out);

/// Adds to [heads, stored keys]: sums over the rows of W^2, W^4, dS^2, dS^4.
struct OfKeys {
  double *p2 = nullptr, *p4 = nullptr, *ds2 = nullptr, *ds4 = nullptr;
};
void add_sources(const BlockRows& b, const OfKeys& out);

}  // namespace attnbench::torch_oracle
