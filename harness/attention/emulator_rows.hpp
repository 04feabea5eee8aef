// What the emulator computes between the products of attention: steps on rows (row_team.hpp) in fp32, rounding where the profile
// says. A matrix is [sequences x heads, rows, keys] of a block, its keys in whole tiles; numbers that a row has one of are
// [sequences x heads, rows]; Q, K, V and G are [sequences x heads, queries or keys, channels] of the batch. Null: there is none.
#pragma once

#include <cstdint>

#include "harness/attention/element.hpp"
#include "harness/attention/error_model.hpp"
#include "harness/attention/tile_team.hpp"

namespace attnbench::emulation {

/// A query of a batch: its storage row (-1: a shorter sequence has none) and the keys [begin, end) of its sequence that it reads.
struct QueryPlace {
  int64_t row = -1, begin = 0, end = 0;
  int64_t filled = 0;    ///< it sees no key, and reads all as if they were equal
  int64_t diagonal = 0;  ///< the key on its diagonal
};

/// A key of a batch: its storage row, its column of the kept mask, whether some query reads it and whether it has gradients.
/// Nobody reads the others, which may hold anything.
struct KeyPlace {
  int64_t row = 0, column = 0, read = 0, real = 0;
};

/// One tensor of the case, in its dtype, with its strides in elements.
struct CaseTensor {
  void* data = nullptr;
  int64_t row_stride = 0, head_stride = 0, channel_stride = 0;

  ATTNBENCH_ON_BOTH int64_t at(int64_t row, int64_t head, int64_t channel) const {
    return row * row_stride + head * head_stride + channel * channel_stride;
  }
};

/// Numbers that a product reads: float, or the case's dtype.
struct Operand {
  float* wide = nullptr;
  void* narrow = nullptr;
};

/// What is the same for every block of a batch.
struct Setting {
  bool on_gpu = false;
  Rounding rounding;
  float scale = 0, softcap = 0;
  float filler = 0;  ///< score of the keys of a filled row: 0, or NaN
  int64_t sequences = 0, queries = 0, keys = 0, d = 0, dv = 0;
  int64_t first_head = 0, heads = 0, group = 1;     ///< query heads of the batch; of a key head
  const QueryPlace* of_queries = nullptr;           ///< [sequences, queries]
  const KeyPlace* of_keys = nullptr;                ///< [sequences, keys]
  const float *slopes = nullptr, *sinks = nullptr;  ///< by query head of the case
  const bool* kept = nullptr;                       ///< of dropout: [storage rows, heads of the case, columns]
  int64_t all_heads = 0, kept_columns = 0;          ///< all: of the case
  float kept_factor = 1;                            ///< 1 / (1 - p)
  float* lse = nullptr;                             ///< [storage rows, heads of the case]
};

/// Query rows [first, first + rows) and keys [key, key + keys), whole tiles.
struct BlockRows {
  Setting s;
  int64_t first = 0, rows = 0, key = 0, keys = 0;
};

/// Fills [sequences x heads, queries, channels] from a tensor of the case; 0 where there is no query.
void gather_queries(const Setting& s, const CaseTensor& from, int64_t channels, const Operand& to);
/// Fills [sequences x heads, keys, channels], a key head once for each of its query heads; 0 where nobody reads a key.
void gather_keys(const Setting& s, const CaseTensor& from, int64_t channels, const Operand& to);

/// Scores, LSE and P. O comes from W V:
///   normalised: W is the softmax itself;
///   else: P that is relative, by tiles of 64 keys, to the row's maximum up to that tile, where it is rounded, and that is
///   then rescaled to the last one's: O = W V / l.
struct OfScores {
  float* S = nullptr;            ///< in: Q K^T; then P for the gradients: of the softmax itself, or exp(S - L) where D is from O
  float* tanh = nullptr;         ///< of softcap
  float* tile_maxima = nullptr;  ///< scratch: [sequences x heads, rows, tiles]
  float* l = nullptr;
  float* W = nullptr;
  void* narrow_W = nullptr;  ///< the same, of a normalised P
};
void softmax_rows(const BlockRows& b, const OfScores& x);

/// O, and D of it where the profile says so.
struct OfOutput {
  float* O = nullptr;  ///< in: W V; then O: [sequences x heads, rows, dv]
  const float* l = nullptr;
  Operand G;
  float* D = nullptr;
  CaseTensor o;
};
void output_rows(const BlockRows& b, const OfOutput& x);

/// dS, and P as dO is multiplied by it. P and dP are overwritten: with what is wanted, which narrow operands then get too.
struct OfGradient {
  float *P = nullptr, *dP = nullptr;  ///< dP in: dO V^T
  const float *tanh = nullptr, *D = nullptr;
  void *narrow_P = nullptr, *narrow_dS = nullptr;
};
void gradient_rows(const BlockRows& b, const OfGradient& x);

/// dq from dS K: [sequences x heads, rows, d].
void query_gradient_rows(const BlockRows& b, const float* product, const CaseTensor& dq);

/// dk or dv, summed over each key head's query heads, from [sequences x heads, keys, channels]; scaled: by the softmax scale.
void key_gradient_rows(const Setting& s, const float* by_head, int64_t channels, bool scaled, const CaseTensor& gradient);

}  // namespace attnbench::emulation
