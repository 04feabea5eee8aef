// Cases as calls of dense attention operations, which know neither cu_seqlens nor padding: [b, heads, tokens, channels]
// and a mask. Padded input is one call with a mask; packed input is one call if all sequences have equal lengths, else one
// call a sequence. The masks are built from the lengths here, apart from the oracle's.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "harness/worker/backend.hpp"

namespace attnbench {

struct DenseCall {
  at::Tensor q, dout;      ///< [b, hq, lq, d], [b, hq, lq, dv]: views of the inputs
  at::Tensor k, v;         ///< [b, hkv, lk, d], [b, hkv, lk, dv]
  at::Tensor distance;     ///< of ALiBi, float32 [b or 1, 1, lq, lk]: |i + offset - j| of real tokens, else 0
  at::Tensor mask;         ///< [b or 1, 1, lq, lk], added to the scores; undefined: every key is seen, or as is_causal says
  bool is_causal = false;  ///< exactly the keys of the operation's own triangle are visible

  /// No query or no key: there is nothing to call, outputs are zeros.
  bool is_empty() const { return q.numel() == 0 || k.numel() == 0; }
};

/// How a causal mask is given: as a tensor like any other, or by the operation's own flag, whose triangle starts at the first
/// key (j <= i) or ends at the last one (j <= i + lk - lq). What the flag cannot say is a tensor too.
enum class Triangle { mask, top_left_flag, bottom_right_flag };

/// The masks are of the inputs' dtype and on their device: 0, or `hidden` where the key is not seen (LibTorch's raw operations
/// read a bool mask as numbers to add). Padded queries see no key, and padded keys are seen by none.
std::vector<DenseCall> dense_calls(const Case& c, const Inputs& inputs, Triangle triangle, double hidden);

/// One tensor of every call, [b, heads, tokens, channels] or [b, heads, tokens], as one in the case's layout.
at::Tensor join(const std::vector<at::Tensor>& parts, Layout layout);

/// Gradients of one call: [b, hq, lq, d], [b, hkv, lk, d], [b, hkv, lk, dv].
struct DenseGradients {
  at::Tensor dq, dk, dv;
};

/// The gradients of every call, joined.
Outputs join_gradients(const std::vector<DenseGradients>& parts, Layout layout);

/// Of a call without queries or without keys.
DenseGradients zero_gradients(const DenseCall& call);

std::optional<at::Tensor> optional_mask(const DenseCall& call);

/// Everything of `attention` but softcap, ALiBi, sinks, dropout, a tail and an LSE.
Capabilities broad_capabilities(std::vector<std::string> devices);

/// Elements of one or of all score matrices [b, hq, lq, lk].
struct ScoreElements {
  int64_t largest = 0, all = 0;
};
ScoreElements score_elements(const std::vector<DenseCall>& calls);

/// Bytes of o, or of dq, dk and dv as well (backward), plus the float32 LSE if there is one.
int64_t output_bytes(const Inputs& inputs, Pass pass, bool with_lse);

}  // namespace attnbench
