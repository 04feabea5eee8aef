// Between the tokens of a case and the rows of heads that an oracle is asked about, as steps on rows (row_team.hpp).
// Tokens are [tokens, all heads, channels], rows [sequences x heads, longest, channels]: of each sequence of a group the same
// heads. Tensors are contiguous, on one device, and float64 unless something else is said. Null: there is none.
#pragma once

#include <cstdint>

#include "harness/attention/element.hpp"

namespace attnbench::head_rows {

/// Rows from tokens, 0 where there is none.
struct Gathering {
  Numbers tokens;
  const int64_t* token_at = nullptr;  ///< [sequences, longest]; -1: none; null: all in their order
  int64_t sequences = 0, longest = 0, channels = 0;
  int64_t all_heads = 0, first = 0, heads = 0;  ///< of the tokens; of the rows, [first, first + heads) of …
  int64_t group = 1;                            ///< … so many for each head of the tokens
  bool nan_is_0 = false;
};
void gather(bool on_gpu, const Gathering& from, double* rows);

/// The tokens of a group, and where they lie in rows [sequences x longest].
struct Places {
  const int64_t *tokens = nullptr, *places = nullptr;
  int64_t count = 0, longest = 0;
  int64_t all_heads = 0, first = 0, heads = 0;  ///< query heads: of the case; of the group
};

/// Rows that are moved to tokens.
struct Move {
  const double* from = nullptr;
  double* to = nullptr;
  int64_t channels = 1;
  bool squared = false;
  const double* allowance = nullptr;  ///< rows: what is not 0 gets this squared, too
};
struct Moves {
  static constexpr int kMost = 9;
  Move move[kMost];
  int count = 0;
};
void place(bool on_gpu, const Places& at, const Moves& moves);

/// Rows over keys that are added to tokens over keys: [tokens, key heads, channels].
struct Share {
  const double* from = nullptr;
  double* to = nullptr;
  int64_t channels = 1;
  const double* rounded = nullptr;  ///< rows: the variance of their rounding is added, too
};
struct Shares {
  static constexpr int kMost = 9;
  Share share[kMost];
  int count = 0;
  Spacing spacing;
  int64_t group = 1;              ///< query heads of a key head
  const bool* seen_in = nullptr;  ///< [sequences, longest]: some query reads the key
  double* seen = nullptr;         ///< [tokens, key heads]: 1 where one does
};
void add_shares(bool on_gpu, const Places& at, const Shares& shares);

/// What depends on the sum over a group: its rounding, its systematic part, in fp32 its accumulation. A key that no query reads
/// has a gradient of exactly 0: variance 0.
struct Sum {
  const double* value = nullptr;
  double* variance = nullptr;
  const double* allowance = nullptr;
  int64_t tokens = 0, heads = 0, channels = 1;
  Spacing spacing;
  double accumulation = 0;
  const int64_t* terms = nullptr;  ///< [tokens]: queries x group of a key
  const double* seen = nullptr;    ///< of each token and head, seen_stride apart: 0 where no query reads it
  int64_t seen_stride = 1;
  const double *sum2 = nullptr, *sum4 = nullptr;  ///< [tokens, heads]: of the squares and fourth powers of its sources
  double* freedom = nullptr;                      ///< [tokens, heads]: their effective number; all channels without them
};
void finish(bool on_gpu, const Sum& sum);

/// How many of the channels are independent: an error of dS comes to every channel of dq through the same row of K (of dk: Q),
/// and where K's channels have a mean, to all alike. Of c channels that have it as the part p of their variances
/// c^2 / (c + p^2 (correlated - c)) are.
struct Freedom {
  const double* value = nullptr;
  double* variance = nullptr;         ///< [tokens, heads, channels]
  const double* allowance = nullptr;  ///< its square is added to a variance that is not 0, first
  int64_t tokens = 0, heads = 0, channels = 1;
  Spacing spacing;
  const double* correlated = nullptr;  ///< of key heads: sum of the squared correlations of all pairs of channels
  int64_t group = 1;                   ///< heads for each of these
  const double* most = nullptr;        ///< [tokens, heads]
  double* freedom = nullptr;           ///< [tokens, heads]
};
void limit_freedom(bool on_gpu, const Freedom& of);

/// products: [heads, channels, channels], of each two channels. Sum of their squared correlations about 0: [heads]. A channel of
/// zeros has none.
void correlate(bool on_gpu, const double* products, int64_t heads, int64_t channels, double* correlated);

}  // namespace attnbench::head_rows
