// What the patched layers have in common: norms, projections with their adapters, RoPE, cache, unpad and pad. Differentiable
// LibTorch operations in the dtype of the states, as the originals do them.
#pragma once

#include <vector>

#include "harness/llama/inputs.hpp"

namespace attnbench {

/// [b, s, heads, d]
struct Projected {
  at::Tensor q, k, v;
};

/// The inputs as the layer has them: its norms and adapters cast as the case says, and what has a gradient a leaf that requires
/// one in a backward pass.
using LayerTensors = LlamaInputs;
LayerTensors leaves(const Case& c, const LlamaInputs& inputs, Pass pass);

/// q, k and v of the states of rows [first, first + count) of the sequence, with RoPE at their position ids. A projection takes
/// its weight in the dtype of the states that it gets, as quantised layers do: behind a float32 norm q, k and v are float32, and
/// behind float32 adapters q and v are.
Projected project(const LayerTensors& x, const Case& c, const LlamaInputs& inputs, int64_t first, int64_t count);

/// weight x / sqrt(mean(x^2) + kNormEpsilon) over the last axis, computed in float32; the quotient is in the dtype of x, so that
/// a float32 weight makes the product float32.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight);

/// x [b, s, heads, d] turned by position_ids [b or 1, s]: x cos + (-x2, x1) sin; cos and sin in the dtype of x.
at::Tensor rotary(const at::Tensor& x, const at::Tensor& position_ids);

/// Real tokens of a mask, bool [b, s]: their places in [b s], and the lengths of the rows.
struct Unpadding {
  at::Tensor places;  ///< int64 [real tokens], ascending
  std::vector<int64_t> lengths;
};
Unpadding unpadding_of(const at::Tensor& mask);
/// [b, s, …] -> [real tokens, …]
at::Tensor unpad(const at::Tensor& padded, const Unpadding& which);
/// [real tokens, …] -> [b, s, …], zeros elsewhere
at::Tensor pad(const at::Tensor& packed, const Unpadding& which, int64_t b, int64_t s);

/// o [b, s, hq, d] -> [b, s, E]
at::Tensor project_out(const at::Tensor& o, const LayerTensors& x);

/// Gradients of sum(out o dout) into `outputs`; nothing in a forward pass.
void add_gradients(LlamaOutputs& outputs, const LayerTensors& x, const LlamaInputs& inputs, Pass pass);

}  // namespace attnbench
