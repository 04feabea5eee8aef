#include "backends/llama/cached_layer.hpp"

#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>

namespace attnbench {

LlamaOutputs run_layer(const Case& c, const LlamaInputs& inputs, Pass pass, const ChunkAttention& attention) {
  const LlamaLayer& layer = *c.llama;
  const int64_t count = c.problem.lq / layer.chunks, all = c.problem.lk;
  const LayerTensors x = leaves(c, inputs, pass);
  at::Tensor k, v;  // [b, tokens so far, hkv, d]
  if (layer.past > 0) {
    k = inputs.past_k.transpose(1, 2);
    v = inputs.past_v.transpose(1, 2);
  }
  std::vector<at::Tensor> outs, weights;
  for (int64_t first = 0; first < c.problem.lq; first += count) {
    const Projected fresh = project(x, c, inputs, first, count);
    k = k.defined() ? at::cat({k, fresh.k}, 1) : fresh.k;
    v = v.defined() ? at::cat({v, fresh.v}, 1) : fresh.v;
    const int64_t before = layer.past + first;
    const ChunkResult result = attention({fresh.q, k, v, first, count, before});
    outs.push_back(project_out(result.o, x));
    if (result.weights.defined()) weights.push_back(at::constant_pad_nd(result.weights, {0, all - before - count}));
  }
  LlamaOutputs outputs;
  outputs.out = at::cat(outs, 1);
  if (layer.cache) {
    outputs.cache_k = k.transpose(1, 2);
    outputs.cache_v = v.transpose(1, 2);
  }
  if (layer.weights && !weights.empty()) outputs.weights = at::cat(weights, 2);
  add_gradients(outputs, x, inputs, pass);
  return outputs;
}

}  // namespace attnbench
