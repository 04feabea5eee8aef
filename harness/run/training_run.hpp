// What the operation `training` adds to a case: a small LLaMA that learns to predict the next byte of a text, its attention
// computed by the backend. Plain data.
//
// The case's `problem` is the attention of one layer: E = hq d channels, causal; a batch has b sequences of s/4 to s bytes, drawn
// by the seed for each step. The model: byte embeddings [256, E]; `layers` of RMSNorm, attention with RoPE, RMSNorm, SwiGLU of 2
// E channels; RMSNorm; logits [256]. Weights and all that is no attention are float32; queries, keys, values and outputs of
// attention have the case's dtype. layout: how the batch reaches the model, padded rows with a mask or one packed row.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace attnbench {

struct TrainingRun {
  int64_t layers = 2;
  int64_t steps = 200;
  int64_t lora = 0;   ///< rank of adapters beside the projections of q and v, which alone are trained then; 0: all weights are
  bool tied = false;  ///< the output projection is the embedding
  bool operator==(const TrainingRun&) const = default;
};

/// One number a step; by name: "loss" (mean over the bytes of the batch), and L2 norms of gradients over all layers, "wq", "wk",
/// "wv", "wo", "mlp", "norm", "embed", "head", "lora".
using Curves = std::map<std::string, std::vector<double>>;

/// What a training run leaves in its record.
struct TrainingCurves {
  Curves measured;
  Curves low, high;        ///< the band in which runs lie that differ by their rounding alone
  double step_us = 0;      ///< median time of a step, optimiser included
  int64_t peak_bytes = 0;  ///< the most that one step allocates
};

}  // namespace attnbench
