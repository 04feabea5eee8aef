// What a float64 oracle answers about one query head of one sequence. Two oracles implement it, each by itself; the
// driver (reference.cpp) gathers the tokens, sums over the heads of a group and adds what depends on those sums.
#pragma once

#include <cstdint>
#include <vector>

#include <c10/core/Device.h>

#include "harness/attention/error_model.hpp"

namespace attnbench {

/// One head, row-major, real tokens only: q [queries][d], dout [queries][dv], k [stored_keys][d], v [stored_keys][dv].
/// stored_keys > keys: padding follows the real keys; only a `uniform` empty row reads it.
struct HeadProblem {
  const double *q = nullptr, *k = nullptr, *v = nullptr, *dout = nullptr;
  int64_t queries = 0, keys = 0, stored_keys = 0, d = 0, dv = 0;
  const Problem* problem = nullptr;  ///< mask, alignment, window, group
  double scale = 0;
  Conventions::EmptyRow empty_row = Conventions::EmptyRow::zero;
  Rounding rounding;
};

/// Rows over queries are complete. Rows over keys are this head's share of a sum over the group: [stored_keys][…],
/// variances without the rounding of the sum, allowances to be added linearly.
struct HeadAnswer {
  std::vector<double> o, o_variance;                  ///< [queries][dv]; variance 0: exactly 0 by the mask
  std::vector<double> lse, lse_sigma;                 ///< [queries]; -inf for an empty row
  std::vector<double> dq, dq_variance, dq_allowance;  ///< [queries][d]; end to end
  std::vector<double> o_freedom, dq_freedom;          ///< [queries]; 0: all such rows share one rounding (uniform)
  std::vector<double> dk, dk_variance, dk_allowance;  ///< [stored_keys][d]; end to end
  std::vector<double> dv, dv_variance;                ///< [stored_keys][dv]
  std::vector<double> p2, p4, ds2, ds4;               ///< [stored_keys]: sums over queries of P^2, P^4, dS^2, dS^4
  std::vector<char> key_seen;                         ///< [stored_keys]: some query reads the key
  std::vector<double> score_samples;                  ///< S_ij - m_i of every 16th visible key
  bool has_power = true;                              ///< eager: rounding S is a small, independent error
};

/// The same with D = rowsum(dO o O) from the given O; dq_variance lacks bQ^2, which the reference holds.
struct HeadGradients {
  std::vector<double> dq, dq_variance;  ///< [queries][d]
  std::vector<double> dk, dk_variance;  ///< [stored_keys][d], this head's share
};

/// Eigen, float64, on the CPU; safe to call from several threads.
HeadAnswer eigen_head(const HeadProblem& head);
/// o: [queries][dv].
HeadGradients eigen_head_given_output(const HeadProblem& head, const double* o);

/// LibTorch operations in float64 on `device`.
HeadAnswer torch_head(const HeadProblem& head, c10::Device device);
HeadGradients torch_head_given_output(const HeadProblem& head, const double* o, c10::Device device);

/// Most rows of a block: block x keys doubles stay small, whatever the length.
inline int64_t block_rows(int64_t keys, int64_t most_elements) {
  const int64_t rows = most_elements / (keys > 0 ? keys : 1);
  return rows < 16 ? 16 : rows > 128 ? 128 : rows;
}

}  // namespace attnbench
