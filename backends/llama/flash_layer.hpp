// What the patches for flash-attn that return no weights share: which cases they cannot be asked.
#pragma once

#include "harness/worker/llama_backend.hpp"

namespace attnbench {

class FlashLayer : public LlamaBackend {
 public:
  /// `attention` outlives the layer.
  FlashLayer(std::string name, const Backend& attention);
  const Declaration& declaration() const override { return declaration_; }
  /// weights=on too: the patches warn and return none.
  std::optional<std::string> why_not(const Case& c, Pass pass, const Device& device) const override;

 protected:
  const Backend& attention_;
  Declaration declaration_;
};

}  // namespace attnbench
