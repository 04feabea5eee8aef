// The door through which the patched LLaMA layers come: one file a system, listed in backends/llama/registry.cpp.
#pragma once

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "harness/llama/inputs.hpp"
#include "harness/run/declaration.hpp"

namespace attnbench {

class Backend;
class LlamaBackend;

/// Its sentence says what the attention in a layer does not take of a call that the layer makes: then the case is unsupported,
/// and nothing that the layer refuses.
class AttentionLacks : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// Who runs a case, and why it is they.
struct LayerChoice {
  const LlamaBackend& layer;
  std::string
      why;  ///< a sentence that begins with what was picked; empty: the layer that was named, on the way that it has for the case
};

class LlamaBackend {
 public:
  virtual ~LlamaBackend() = default;
  virtual const Declaration& declaration() const = 0;
  /// A sentence why the layer does not take such a case at all, by default from the declared capabilities; what it takes and gets
  /// wrong, or refuses as the original does, is computed, or thrown. What its attention lacks is told by run().
  virtual std::optional<std::string> why_not(const Case& c, Pass pass, const Device& device) const;
  /// Name of the attention backend that it calls; empty: it computes attention itself.
  virtual std::string attention() const { return ""; }
  /// The call of it, the last one where there are several: by default that of a layer which aligns to the bottom right and hands
  /// on as many key heads as it has.
  virtual Case attention_case(const Case& c) const;
  /// Itself, unless it leaves such a case to another layer, which is then asked all of the above. Throws with a sentence where
  /// none may be taken.
  virtual LayerChoice choose(const Case&, Pass, const Device&) const { return {*this, ""}; }
  /// forward: out, and cache and weights where the case asks for them; backward: the gradients too. Throws with a sentence what
  /// the original refuses, then AttentionLacks.
  virtual LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const = 0;
};

/// Every layer, those that call a fused kernel with whichever of `candidates` (in order of preference; they outlive the layers)
/// harness/run/dispatch.hpp picks for a case and a pass: on the SM that the case assumes, else on `assume_sm`, else on the
/// device's.
std::vector<std::unique_ptr<LlamaBackend>> make_dispatched_layers(const Device& device,
                                                                  const std::vector<const Backend*>& candidates,
                                                                  std::optional<int> assume_sm);

/// Every layer, with `attention` (one of `make_backends`; it outlives them) as what computes the attention of those that call a
/// fused kernel.
std::vector<std::unique_ptr<LlamaBackend>> make_llama_backends(const Device& device, const Backend& attention);

}  // namespace attnbench
