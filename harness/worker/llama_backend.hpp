// The door through which the patched LLaMA layers come: one file a system, listed in backends/registry.cpp.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "harness/llama/inputs.hpp"
#include "harness/run/declaration.hpp"

namespace attnbench {

class Backend;

class LlamaBackend {
 public:
  virtual ~LlamaBackend() = default;
  virtual const Declaration& declaration() const = 0;
  /// A sentence why the layer does not take such a case at all, by default from the declared capabilities; what it takes and gets
  /// wrong, or refuses as the original does, is computed, or thrown.
  virtual std::optional<std::string> why_not(const Case& c, Pass pass, const Device& device) const;
  /// forward: out, and cache and weights where the case asks for them; backward: the gradients too. Throws with a sentence what
  /// the original refuses.
  virtual LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const = 0;
};

/// Every layer, with `attention` (one of `make_backends`; it outlives them) as what computes the attention of those that call a
/// fused kernel.
std::vector<std::unique_ptr<LlamaBackend>> make_llama_backends(const Device& device, const Backend& attention);

}  // namespace attnbench
