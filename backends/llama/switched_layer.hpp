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
  LayerChoice choose(const Case& c, Pass, const Device&) const override {
    return {implementation(c) == Implementation::patched ? patched_path_ : original_path_, ""};
  }

 protected:
  /// `attention` outlives the layer. Its padded rows are 0 where the patch runs.
  SwitchedLayer(const std::string& name, const Device& device, const Backend& attention);
  /// What the case's steps leave running.
  virtual Implementation implementation(const Case& c) const = 0;
  const std::unique_ptr<LlamaBackend> original_, patched_;

 private:
  const LayerPath original_path_, patched_path_;
};

}  // namespace attnbench
