// attention_switch: the cases of flagembedding_switch under a switch that has none of its traps (attention_switch.hpp). Of a
// model of several layers one runs, so that a switch of another layer would show.
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <vector>

#include <fmt/format.h>

#include "backends/llama/attention_switch.hpp"
#include "backends/llama/switched_layer.hpp"

namespace attnbench {
namespace {

constexpr size_t kModelLayers = 3, kLayerThatRuns = 1, kOtherLayer = 2;

class AttentionSwitchLayer : public SwitchedLayer {
 public:
  AttentionSwitchLayer(const Device& device, const Backend& attention) : SwitchedLayer("attention_switch", device, attention) {}

  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    const SwitchableAttention<LlamaOutputs()> attention(
        layer_after(c.llama->switching), [&] { return original_->run(c, inputs, pass); },
        [&] { return patched_->run(c, inputs, pass); });
    LlamaOutputs outputs = attention();
    outputs.ran = attention.layer().runs();
    return outputs;
  }

 protected:
  Implementation implementation(const Case& c) const override { return layer_after(c.llama->switching).runs(); }

 private:
  static SwitchableLayer layer_after(const std::vector<SwitchStep>& steps) {
    ModelClass llama("LlamaForCausalLM");
    SwitchableModel model(llama, kModelLayers);
    for (const SwitchStep step : steps) apply(step, llama, model);
    return model.layer(kLayerThatRuns);
  }

  static void apply(SwitchStep step, ModelClass& llama, SwitchableModel& model) {
    switch (step) {
      case SwitchStep::enable_class:
        return llama.enable();
      case SwitchStep::disable_class:
        return llama.disable();
      case SwitchStep::enable_instance:
        return model.enable();
      case SwitchStep::disable_instance:
        return model.disable();
      case SwitchStep::enable_layer:
        return model.layer(kLayerThatRuns).enable();
      case SwitchStep::enable_other_layer:
        return model.layer(kOtherLayer).enable();
      case SwitchStep::disable_layer:
        return model.layer(kLayerThatRuns).disable();
      case SwitchStep::disable_other_layer:
        return model.layer(kOtherLayer).disable();
      case SwitchStep::lora_wrap:  // the wrapper keeps the model's handle
      case SwitchStep::reimport:   // every name of the class is a handle of one switch
        return;
      case SwitchStep::new_instance:
        model = SwitchableModel(llama, kModelLayers);
        return;
    }
    throw std::logic_error(fmt::format("switch step {} has no meaning here", static_cast<int>(step)));
  }
};

}  // namespace

std::unique_ptr<LlamaBackend> make_attention_switch(const Device& device, const Backend& attention) {
  return std::make_unique<AttentionSwitchLayer>(device, attention);
}

}  // namespace attnbench
