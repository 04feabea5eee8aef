// The real tokens of a case's heads, in the groups that an oracle is asked about at once.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "harness/attention/oracle.hpp"
#include "harness/attention/reference.hpp"

namespace attnbench {

/// Query heads [head, head + heads) of some sequences, which an oracle is asked about at once.
struct Group {
  std::vector<int64_t> sequences;  ///< ascending
  int64_t head = 0, heads = 0;     ///< of each sequence
  SequenceOfHeads longest;         ///< in each respect
  at::Tensor q_tokens, k_tokens;   ///< int64: which of the case's tokens are theirs
  at::Tensor q_places, k_places;   ///< int64: where those lie in rows [sequence, up to the longest]
  at::Tensor key_heads;            ///< int64 [heads]: the key head of each query head
};

/// All heads of a case as tokens, where the oracle computes.
class Heads {
 public:
  Heads(OracleKind kind, const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row);

  const std::vector<Group>& groups() const { return groups_; }
  c10::Device device() const { return device_; }
  const Problem& problem() const { return problem_; }
  const Rounding& rounding() const { return rounding_; }
  int64_t queries() const { return q_offsets_.back(); }
  int64_t keys() const { return k_offsets_.back(); }

  HeadProblem head_problem(const Group& group) const;
  /// Its part of a tensor over queries [tokens, hq, channels]: float64 [sequences x heads, queries, channels].
  at::Tensor of_queries(const at::Tensor& tokens, const Group& group) const;
  /// Writes an answer [sequences x heads, queries, …] to its place in a tensor over queries [tokens, hq, …].
  void place_queries(const at::Tensor& rows, const Group& group, const at::Tensor& tokens) const;
  /// An answer over keys [sequences x heads, stored keys, …] as [real tokens of the group, heads, …].
  at::Tensor key_tokens(const at::Tensor& rows, const Group& group) const;
  /// Queries x group heads that a row of dk or dv sums over: float64 [tokens, 1, 1].
  at::Tensor terms_of_keys() const;

 private:
  SequenceOfHeads sequence(int64_t n) const;
  void make_groups();
  void add_group(std::vector<int64_t> sequences, int64_t head, int64_t heads);
  at::Tensor factors_of(const Group& group) const;
  at::Tensor keys_of(const at::Tensor& real, const std::vector<at::Tensor>& padding, const Group& group) const;

  const Problem& problem_;
  const Inputs& inputs_;
  Conventions::EmptyRow empty_row_;
  c10::Device device_;
  Rounding rounding_;
  std::vector<Group> groups_;
  std::vector<int64_t> q_offsets_, k_offsets_;
  std::vector<double> slopes_, sinks_;             ///< by query head; empty: none
  at::Tensor q_, k_, v_, dout_;                    ///< in the case's dtype
  std::vector<at::Tensor> k_padding_, v_padding_;  ///< by sequence; empty unless empty rows are uniform
  std::vector<at::Tensor> kept_;                   ///< of dropout: by sequence, bool [heads, queries, stored keys]; else empty
  bool reads_padding_ = false;
};

}  // namespace attnbench
