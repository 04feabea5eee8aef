// Which keys the queries of some sequences read: what the oracle in LibTorch knows on the host, so that it never waits for a GPU
// to decide the way of the program.
#pragma once

#include <cstdint>
#include <vector>

#include "harness/attention/oracle.hpp"

namespace attnbench::torch_oracle {

/// The keys [begin, end) that a query reads. An empty row, which sees none, reads none or all that are stored.
struct Stretch {
  int64_t begin = 0, end = 0;
  bool empty = false;
  bool reads() const { return begin < end; }
};

/// By query of the sequence; rows up to the longest sequence's read nothing.
std::vector<Stretch> read_keys(const HeadProblem& h, const SequenceOfHeads& sequence);

/// Key - query on the diagonal.
int64_t diagonal_of(const Problem& problem, const SequenceOfHeads& sequence);

/// 1 for a key that some row reads, else 0.
std::vector<int64_t> keys_read(const std::vector<Stretch>& stretches, int64_t keys, bool by_empty_rows);

/// Rows [first, first + rows) against keys [key, key + keys), the fewest that hold all that these rows read.
struct Span {
  int64_t first = 0, rows = 0, key = 0, keys = 0;
  bool fills = false;  ///< some empty row reads all stored keys
};

/// Of all sequences together.
Span span_of(const std::vector<std::vector<Stretch>>& sequences, int64_t first, int64_t rows);

/// Every 16th visible key of a row, starting at another one in each row, is sampled, whole rows, until a head has enough.
struct Samples {
  std::vector<int64_t>
      first;  ///< of each head that is sampled and query: where the row's samples begin among all; -1: it has none
  std::vector<int64_t> owners;  ///< the head of each sample
};
/// Of the first heads, as many as give enough samples. stretches: by sequence.
Samples choose_samples(const HeadProblem& h, const std::vector<std::vector<Stretch>>& stretches);

}  // namespace attnbench::torch_oracle
