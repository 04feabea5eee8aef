// What a layer of a LLaMA is lent for one call, so that it can spoil nothing of what it is judged against, and what it did to it.
#pragma once

#include <string>

#include "harness/llama/inputs.hpp"

namespace attnbench {

/// Copies, with the strides that the inputs have, and for its values V: `negated` makes them the negative of what they are (wv,
/// or its scales, b of its adapter, and the past's values), which negates every output that depends on them, to the last bit.
struct LentInputs {
  LentInputs(const LlamaInputs& inputs, bool negated, c10::Device device);

  /// Names of the inputs that do not hold any more what was lent ("hidden, mask"); empty: all do.
  std::string overwritten() const;

  LlamaInputs lent;

 private:
  LlamaInputs kept_;
};

/// What a call with negated values computed, as one without would have: same numbers where it is right.
LlamaOutputs with_values_as_they_are(LlamaOutputs of_negated);

}  // namespace attnbench
