// flagembedding_switch: how FlagEmbedding enables and disables its patch, which is done to Python's classes and instances:
// - enable() sets the forward of the attention class that the module transformers.models.llama has now; enable(model) binds the
//   patch to each layer of the model, if isinstance() knows it as the LlamaForCausalLM that was imported with the patch; else it
//   warns, and does nothing.
// - disable() reloads the module, which makes new classes under the old names; disable(model) binds to each layer the forward
//   that the class of the module has now.
// Hence the traps: a reload reaches no model that exists, and no name that was imported before; disable(model) binds the patch
// itself where the class is patched; a wrapper for adapters, and a model of the reloaded class, are not known.
// A layer cannot be switched alone.
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "backends/llama/switched_layer.hpp"

namespace attnbench {
namespace {

/// What one load of the module defines: a class of models, and that of their attention, which has a forward.
struct LlamaModule {
  Implementation attention_forward = Implementation::original;
};

/// All of its layers are alike: no step is about one of them.
struct PythonModel {
  std::shared_ptr<const LlamaModule> of;  ///< the load whose classes it is made of
  bool wrapped = false;                   ///< its outermost type is the wrapper's
  std::optional<Implementation> bound;    ///< to its layers; unset: they have the forward of their class

  Implementation runs() const { return bound.value_or(of->attention_forward); }
};

bool is_of_one_layer(SwitchStep step) {
  return step == SwitchStep::enable_layer || step == SwitchStep::enable_other_layer || step == SwitchStep::disable_layer ||
         step == SwitchStep::disable_other_layer;
}

/// The process of a training script, in which the patch and the script import the classes first of all.
class PythonProcess {
 public:
  void apply(SwitchStep step) {
    switch (step) {
      case SwitchStep::enable_class:
        module_->attention_forward = Implementation::patched;
        return;
      case SwitchStep::disable_class:
        module_ = std::make_shared<LlamaModule>();
        return;
      case SwitchStep::enable_instance:
        if (is_known("enabled")) model_.bound = Implementation::patched;
        return;
      case SwitchStep::disable_instance:
        if (is_known("disabled")) model_.bound = module_->attention_forward;
        return;
      case SwitchStep::enable_layer:
      case SwitchStep::enable_other_layer:
      case SwitchStep::disable_layer:
      case SwitchStep::disable_other_layer:
        return;  // there is no such switch
      case SwitchStep::lora_wrap:
        model_.wrapped = true;
        return;
      case SwitchStep::reimport:
        of_script_ = module_;
        return;
      case SwitchStep::new_instance:
        model_ = {of_script_, false, {}};
        return;
    }
    throw std::logic_error(fmt::format("switch step {} has no meaning here", static_cast<int>(step)));
  }

  Implementation runs() const { return model_.runs(); }
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  /// isinstance(model, LlamaForCausalLM), by the name that the patch imported.
  bool is_known(const char* asked) {
    if (!model_.wrapped && model_.of == of_patch_) return true;
    const char* type =
        model_.wrapped ? "the model is a PeftModelForCausalLM" : "the model's LlamaForCausalLM is not the one imported before";
    warnings_.push_back(fmt::format("{}: nothing is {}", type, asked));
    return false;
  }

  std::shared_ptr<LlamaModule> module_ = std::make_shared<LlamaModule>();  ///< what the module's names stand for now
  const std::shared_ptr<const LlamaModule> of_patch_ = module_;            ///< … those that the patch imported
  std::shared_ptr<const LlamaModule> of_script_ = module_;                 ///< … that the script imported
  PythonModel model_{of_script_, false, {}};
  std::vector<std::string> warnings_;
};

class FlagembeddingSwitch : public SwitchedLayer {
 public:
  FlagembeddingSwitch(const Device& device, const Backend& attention)
      : SwitchedLayer("flagembedding_switch", device, attention) {}

  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    for (const SwitchStep step : c.llama->switching)
      if (is_of_one_layer(step))
        throw std::invalid_argument(
            fmt::format("switch={}: flagembedding_switch takes a model or none, and no single layer", name_of(step)));
    const PythonProcess process = process_after(c.llama->switching);
    const Implementation runs = process.runs();
    LlamaOutputs outputs = (runs == Implementation::patched ? patched_ : original_)->run(c, inputs, pass);
    outputs.ran = runs;
    outputs.warnings.insert(outputs.warnings.begin(), process.warnings().begin(), process.warnings().end());
    return outputs;
  }

 protected:
  Implementation implementation(const Case& c) const override { return process_after(c.llama->switching).runs(); }

 private:
  static PythonProcess process_after(const std::vector<SwitchStep>& steps) {
    PythonProcess process;
    for (const SwitchStep step : steps) process.apply(step);
    return process;
  }
};

}  // namespace

std::unique_ptr<LlamaBackend> make_flagembedding_switch(const Device& device, const Backend& attention) {
  return std::make_unique<FlagembeddingSwitch>(device, attention);
}

}  // namespace attnbench
