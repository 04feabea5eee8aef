// What the patches for flash-attn that return no weights share: which cases they cannot be asked.
#pragma once

#include "backends/llama/declared_layer.hpp"

namespace attnbench {

class FlashLayer : public DeclaredLayer {
 public:
  /// `attention` outlives the layer.
  FlashLayer(const std::string& name, const Backend& attention);
  /// weights=on too: the patches warn and return none.
  std::optional<std::string> why_not(const Case& c, Pass pass, const Device& device) const override;

 protected:
  const Backend& attention_;
};

}  // namespace attnbench
