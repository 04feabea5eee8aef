// A layer around an attention, its new tokens in one call or in chunks: each chunk is projected and turned by itself, and stands
// behind the rotated keys and the values of all before it.
#pragma once

#include <functional>

#include "backends/llama/layer.hpp"

namespace attnbench {

struct ChunkCall {
  at::Tensor q;     ///< [b, count, hq, d]
  at::Tensor k, v;  ///< [b, before + count, hkv, d]
  int64_t first;    ///< the chunk's first token among the new ones
  int64_t count;    ///< its tokens
  int64_t before;   ///< tokens before it: the case's past, and the chunks before
};

struct ChunkResult {
  at::Tensor o;        ///< [b, count, hq, d]
  at::Tensor weights;  ///< [b, hq, count, before + count]; undefined: none
};

using ChunkAttention = std::function<ChunkResult(const ChunkCall&)>;

/// The whole layer: projections, attention of each chunk, output projection, gradients (through the cache too), and the cache and
/// the weights if the case asks for them.
LlamaOutputs run_layer(const Case& c, const LlamaInputs& inputs, Pass pass, const ChunkAttention& attention);

}  // namespace attnbench
