// Which part of a tensor explains where its bad elements lie: a tile, a row of each tile, a head, a block of channels, …
//
// A part is a product of four sets, one on each axis: sequences x tokens (by rank within their sequence) x heads x channels.
// Each set is one of few kinds (below). The best part is the one with which the bad elements are told in the fewest bits: K of N
// elements are bad, k of the n in the part. Where they lie is told by
//   bits of the part + f(k, n) + f(K - k, N - n),   f(k, n) = n log2 n - k log2 k - (n - k) log2(n - k),
// against f(K, N) without a part; a part costs what it takes to name it among its like, so that chance does not find one. Sets
// are chosen greedily, axis by axis, until none is better. The part is believed if it saves 30 % of the bits and holds 70 % of
// the bad elements, at a higher rate than outside; else there is no pattern.
//
// Kinds of sets
//   sequences  all, one, first, last, after_first, before_last
//   tokens     all, one, first, last (of each sequence), first_of_tile, last_of_tile, tile, prefix, suffix, range (of tiles),
//              tail (what is left behind the last whole tile), last_tile, odd, even, unseen, seen (by the mask)
//   heads      all, one, first, last, group (of one key head), member (of each group), not_first_member, some
//   channels   all, one, block (aligned), last_block, lower_half, upper_half, odd, even
// Tiles have 16, 32, 64 or 128 tokens, blocks 8, 16, 32 or 64 channels.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/run/tensor_failure.hpp"

namespace attnbench {

struct BadElements {
  std::vector<int64_t> offsets;  ///< of the sequences' tokens: prefix sums of their lengths
  int64_t heads = 1, channels = 1;
  int64_t group = 1;            ///< neighbouring heads that share a key head
  std::string token = "query";  ///< or "key": what a token of this tensor is
  std::vector<uint8_t> bad;     ///< [token][head][channel], tokens of all sequences one after the other; 1: bad
  std::vector<uint8_t> unseen;  ///< [token] 1: the mask hides all keys from the query, or the key from all queries
};

/// The best part, or an empty text if there is no pattern.
BadPattern explain(const BadElements& elements);

}  // namespace attnbench
