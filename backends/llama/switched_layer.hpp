// A layer that runs what its model was switched to: hf_eager's, the original, or flagembedding's, the patch. How the steps of a
// case come to one of the two is each switch's own.
#pragma once

#include <memory>
#include <string>

#include "backends/llama/declared_layer.hpp"

namespace attnbench {

class SwitchedLayer : public DeclaredLayer {
 public:
  bool can_be_switched() const override { return true; }

 protected:
  /// `attention` outlives the layer. Its padded rows are 0 where the patch runs; its profile is the original's, which rounds
  /// more.
  SwitchedLayer(const std::string& name, const Device& device, const Backend& attention);
  const std::unique_ptr<LlamaBackend> original_, patched_;
};

}  // namespace attnbench
