// Judges the outputs of a LLaMA layer: the gates of verdict_gates.hpp on every tensor, with the variances of the layer's own
// reference (harness/llama/reference.hpp).
#pragma once

#include "harness/llama/reference.hpp"
#include "harness/run/calibration.hpp"
#include "harness/worker/verdict.hpp"

namespace attnbench {

/// What a layer is held to; `inputs`, on the CPU, and `calibration` outlive it.
struct LayerYardstick {
  const Case& c;
  const LlamaInputs& inputs;
  const LayerReference& reference;
  const Calibration& calibration;
  bool padded_rows_zero = false;  ///< outputs of padded queries are exactly 0; where a layer can be switched, those of its patch
  Semantics semantics = {};       ///< what the reference is of
};

/// Every tensor of the reference, of a forward pass all but the gradients, has to be among the outputs, in the reference's
/// dtype and of its shape; probabilities only if the semantics return them, else they must not be. What has to run is the
/// semantics' implementation, else the case's. A layer that says which one ran is held to it by its padded rows: where the patch
/// zeroes them, the original's must not all be 0.
Verdict judge_layer(const LlamaOutputs& outputs, Pass pass, const LayerYardstick& yardstick);

}  // namespace attnbench
