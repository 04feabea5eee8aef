// The real tokens of a case's heads, in the groups that an oracle is asked about at once.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "harness/attention/head_rows.hpp"
#include "harness/attention/oracle.hpp"
#include "harness/attention/reference.hpp"

namespace attnbench {

/// Query heads [head, head + heads) of some sequences, which an oracle is asked about at once.
struct Group {
  std::vector<int64_t> sequences;     ///< ascending
  int64_t head = 0, heads = 0;        ///< of each sequence
  SequenceOfHeads longest;            ///< in each respect
  at::Tensor q_tokens, k_tokens;      ///< int64: which of the case's tokens are theirs
  at::Tensor q_places, k_places;      ///< int64: where those lie in rows [sequence, up to the longest]
  at::Tensor q_token_at, k_token_at;  ///< int64: the token of each such row, -1: none; padding follows the case's tokens

  head_rows::Places queries(int64_t all_heads) const;
  head_rows::Places keys(int64_t all_heads) const;
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
  /// Sum of the squared correlations about 0 of all pairs of channels, over tokens and the heads that end in one key head:
  /// float64 [key heads]. NaN, in keys that nobody reads, counts as 0.
  at::Tensor correlations_of_queries() const { return correlations(q_.narrow(0, 0, queries())); }
  at::Tensor correlations_of_keys() const { return correlations(k_.narrow(0, 0, keys())); }

  /// Queries x group heads that a row of dk or dv sums over: int64 [tokens].
  const at::Tensor& terms_of_keys() const { return terms_of_keys_; }

 private:
  SequenceOfHeads sequence(int64_t n) const;
  void make_groups();
  void add_group(std::vector<int64_t> sequences, int64_t head, int64_t heads);
  at::Tensor factors_of(const Group& group) const;
  at::Tensor correlations(const at::Tensor& tokens) const;
  at::Tensor gather(const at::Tensor& tokens, const at::Tensor& token_at, int64_t longest, int64_t per_head,
                    const Group& group) const;

  const Problem& problem_;
  const Inputs& inputs_;
  Conventions::EmptyRow empty_row_;
  c10::Device device_;
  Rounding rounding_;
  std::vector<Group> groups_;
  std::vector<int64_t> q_offsets_, k_offsets_;
  std::vector<double> slopes_, sinks_;  ///< by query head; empty: none
  at::Tensor q_, k_, v_, dout_;         ///< in the case's dtype; k_, v_: where empty rows are uniform, padding behind the tokens
  std::vector<int64_t> first_padding_;  ///< by sequence: where its padding begins there
  at::Tensor terms_of_keys_;
  std::vector<at::Tensor> kept_;  ///< of dropout: by sequence, bool [heads, queries, stored keys]; else empty
  bool reads_padding_ = false;
};

}  // namespace attnbench
