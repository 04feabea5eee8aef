#include "backends/llama/flash_layer.hpp"

#include <utility>

#include "harness/worker/backend.hpp"

namespace attnbench {

FlashLayer::FlashLayer(const std::string& name, const Backend& attention)
    : DeclaredLayer(fused_layer(name, attention)), attention_(attention) {}

LlamaOutputs FlashLayer::without_weights(const Case& c, LlamaOutputs outputs) const {
  if (c.llama->weights) outputs.warnings.push_back("output_attentions: " + declaration_.name + " returns none");
  return outputs;
}

}  // namespace attnbench
