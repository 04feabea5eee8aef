// What a float64 oracle answers about query heads of sequences. Two oracles implement it, each by itself; the driver
// (reference.cpp) gathers the tokens, sums over the heads of a group and adds what depends on those sums.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "harness/attention/error_model.hpp"

namespace attnbench {

/// A sequence's lengths. stored_keys > keys: padding follows the real keys; only a `uniform` empty row reads it.
struct SequenceOfHeads {
  int64_t queries = 0, keys = 0, stored_keys = 0;
};

/// Some query heads, each with its key head: the same number of each sequence, those of the first sequence first. Contiguous
/// float64 tensors on one device: q [heads, queries, d], dout [heads, queries, dv], k [heads, stored_keys, d],
/// v [heads, stored_keys, dv], where queries, keys and stored_keys are the largest of the sequences'; rows beyond a shorter
/// sequence's are 0, and what is answered about them means nothing.
struct HeadProblem {
  at::Tensor q, k, v, dout;
  std::vector<SequenceOfHeads> sequences;  ///< at least one
  int64_t heads = 1;                       ///< of all sequences together
  int64_t queries = 0, keys = 0, stored_keys = 0, d = 0, dv = 0;
  const Problem* problem = nullptr;  ///< mask, alignment, window, group
  double scale = 0;
  std::vector<double> slopes, sinks;  ///< of ALiBi and of the sinks, by head; empty: none
  at::Tensor factors;                 ///< M, [heads, queries, stored_keys]: kept / (1 - p) of dropout; undefined: none
  Conventions::EmptyRow empty_row = Conventions::EmptyRow::zero;
  Rounding rounding;
};

/// Float64 on the device of the problem. Rows over queries are complete. Rows over keys are each head's share of a sum over
/// the group: variances without the rounding of the sum, allowances to be added linearly.
struct HeadAnswer {
  at::Tensor o, o_variance;                  ///< [heads, queries, dv]; variance 0: exactly 0 by the mask
  at::Tensor lse, lse_sigma;                 ///< [heads, queries]; -inf for an empty row
  at::Tensor dq, dq_variance, dq_allowance;  ///< [heads, queries, d]; end to end
  at::Tensor o_freedom, dq_freedom;          ///< [heads, queries]; 0: all such rows share one rounding (uniform)
  at::Tensor dk, dk_variance, dk_allowance;  ///< [heads, stored_keys, d]; end to end
  at::Tensor dv, dv_variance;                ///< [heads, stored_keys, dv]
  at::Tensor p2, p4, ds2,
      ds4;  ///< [heads, stored_keys]: sums over queries of (P M)^2, (P M)^4, dS^2, dS^4; where scores are rounded anything
  at::Tensor key_seen;                 ///< bool [sequences, stored_keys]: some query reads the key
  at::Tensor score_samples;            ///< [any]: S_ij - m_i of every 16th visible key; see kScoreSamples
  std::vector<int64_t> sampled_heads;  ///< the head of each sample; those of a head stand in the order of its rows
};

/// The same with D = rowsum(dO o O) from the given O, where the profile is conditional(); dq_variance lacks bQ^2, which the
/// reference holds.
struct HeadGradients {
  at::Tensor dq, dq_variance;  ///< [heads, queries, d]
  at::Tensor dk, dk_variance;  ///< [heads, stored_keys, d], each head's share
};

/// Scores are sampled row by row, whole rows, until a head has so many; then no head after it is sampled.
constexpr int64_t kScoreSamples = 8192;

/// Eigen, float64: one head of one sequence on the CPU; safe to call from several threads.
HeadAnswer eigen_head(const HeadProblem& head);
/// o: contiguous float64 [1, queries, dv].
HeadGradients eigen_head_given_output(const HeadProblem& head, const at::Tensor& o);

/// LibTorch's products, and steps on rows between them, in float64 on the device of the tensors.
HeadAnswer torch_heads(const HeadProblem& heads);
/// o: float64 [heads, queries, dv].
HeadGradients torch_heads_given_output(const HeadProblem& heads, const at::Tensor& o);

}  // namespace attnbench
