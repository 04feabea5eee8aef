#include "backends/llama/attention_switch.hpp"

#include <algorithm>
#include <cstdint>

#include <fmt/format.h>

namespace attnbench {
namespace {

/// What was said to one switch; said = 0: nothing yet. The clock of the class counts from 1.
struct SwitchSetting {
  Implementation wanted = Implementation::original;
  uint64_t said = 0;
};

}  // namespace

/// The clock is of the class because only what is said to one class, its models and their layers is ever compared.
struct ModelClass::State {
  std::string name;
  SwitchSetting setting;
  uint64_t clock = 0;

  SwitchSetting now(Implementation wanted) { return {wanted, ++clock}; }
};

struct SwitchableLayer::ModelState {
  std::shared_ptr<ModelClass::State> of;
  SwitchSetting setting;
  std::vector<SwitchSetting> layers;

  Implementation runs(size_t layer) const {
    return std::ranges::max({of->setting, setting, layers[layer]}, {}, &SwitchSetting::said).wanted;
  }
};

ModelClass::ModelClass(std::string name) : state_(std::make_shared<State>()) {
  state_->name = std::move(name);
}
void ModelClass::enable() {
  state_->setting = state_->now(Implementation::patched);
}
void ModelClass::disable() {
  state_->setting = state_->now(Implementation::original);
}
Implementation ModelClass::runs() const {
  return state_->setting.wanted;
}
const std::string& ModelClass::name() const {
  return state_->name;
}

SwitchableLayer::SwitchableLayer(std::shared_ptr<ModelState> model, size_t number) : model_(std::move(model)), number_(number) {}
void SwitchableLayer::set(Implementation wanted) {
  model_->layers[number_] = model_->of->now(wanted);
}
void SwitchableLayer::enable() {
  set(Implementation::patched);
}
void SwitchableLayer::disable() {
  set(Implementation::original);
}
Implementation SwitchableLayer::runs() const {
  return model_->runs(number_);
}

SwitchableModel::SwitchableModel(const ModelClass& of, size_t layers) : state_(std::make_shared<SwitchableLayer::ModelState>()) {
  if (layers == 0) throw std::invalid_argument(fmt::format("a model of {} without layers has nothing to switch", of.name()));
  state_->of = of.state_;
  state_->layers.resize(layers);
}
void SwitchableModel::set(Implementation wanted) {
  state_->setting = state_->of->now(wanted);
}
void SwitchableModel::enable() {
  set(Implementation::patched);
}
void SwitchableModel::disable() {
  set(Implementation::original);
}
std::optional<Implementation> SwitchableModel::runs() const {
  const Implementation first = state_->runs(0);
  for (size_t i = 1; i < layers(); ++i)
    if (state_->runs(i) != first) return std::nullopt;
  return first;
}
size_t SwitchableModel::layers() const {
  return state_->layers.size();
}
SwitchableLayer SwitchableModel::layer(size_t number) const {
  if (number >= layers())
    throw std::out_of_range(
        fmt::format("layer {} of a model of {}, whose {} layers count from 0", number, state_->of->name, layers()));
  return {state_, number};
}

}  // namespace attnbench
