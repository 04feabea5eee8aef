// What the patched layers have in common: projections, RoPE, cache, unpad and pad. Differentiable LibTorch operations in the
// dtype of the states, as the originals do them.
#pragma once

#include <vector>

#include "harness/llama/inputs.hpp"

namespace attnbench {

/// [b, s, heads, d]
struct Projected {
  at::Tensor q, k, v;
};

/// Leaves that require gradients in a backward pass.
struct LayerTensors {
  at::Tensor hidden, wq, wk, wv, wo;
};
LayerTensors leaves(const LlamaInputs& inputs, Pass pass);

/// q, k and v of the states of rows [first, first + count) of the sequence, with RoPE at their position ids.
Projected project(const LayerTensors& x, const Case& c, const LlamaInputs& inputs, int64_t first, int64_t count);

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
