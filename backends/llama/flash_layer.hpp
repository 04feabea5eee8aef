// What the patches for flash-attn share: asked for weights they warn, and return none.
#pragma once

#include "backends/llama/declared_layer.hpp"

namespace attnbench {

class FlashLayer : public DeclaredLayer {
 public:
  /// `attention` outlives the layer.
  FlashLayer(const std::string& name, const Backend& attention);

 protected:
  /// `outputs`, with that warning where the case asks for weights.
  LlamaOutputs without_weights(const Case& c, LlamaOutputs outputs) const;

  const Backend& attention_;
};

}  // namespace attnbench
