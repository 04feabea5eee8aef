#include "backends/llama/flash_layer.hpp"

#include <utility>

#include "backends/llama/layer_declaration.hpp"
#include "harness/worker/backend.hpp"

namespace attnbench {

FlashLayer::FlashLayer(std::string name, const Backend& attention)
    : attention_(attention), declaration_(declare_layer(std::move(name), attention.declaration())) {}

std::optional<std::string> FlashLayer::why_not(const Case& c, Pass pass, const Device& device) const {
  if (c.llama->weights) return "weights=on: " + declaration_.name + " warns, and returns none";
  return attnbench::why_not(declaration_, c, pass, device);
}

}  // namespace attnbench
