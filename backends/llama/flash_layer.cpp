#include "backends/llama/flash_layer.hpp"

#include "harness/worker/backend.hpp"

namespace attnbench {

FlashLayer::FlashLayer(const std::string& name, const Backend& attention)
    : DeclaredLayer(fused_layer(name, attention)), attention_(attention) {}

std::optional<std::string> FlashLayer::why_not(const Case& c, Pass pass, const Device& device) const {
  if (c.llama->weights) return "weights=on: " + declaration_.name + " warns, and returns none";
  return DeclaredLayer::why_not(c, pass, device);
}

}  // namespace attnbench
