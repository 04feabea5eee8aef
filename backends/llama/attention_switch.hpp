// Switches the attention of models while they exist: of all models of a class, of one model, of one layer.
//
// A layer holds both implementations and asks at each call which one runs; nothing is bound to a model when a switch is thrown.
// Of what was said to a layer, to its model and to the model's class, the last counts: a class that is switched takes along every
// model of it, made before or after, and a model all of its layers. Before anything is said the original runs, and after
// disable() it runs again, however the patch had come there.
//
// Handles are cheap to copy and copies are one switch, so that whoever wraps a model switches it by keeping its handle. Not
// synchronised: throw switches between calls.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "harness/run/llama_layer.hpp"

namespace attnbench {

/// What models of one kind have in common, whoever made them.
class ModelClass {
 public:
  explicit ModelClass(std::string name);
  void enable();
  void disable();
  /// In a model that is made now.
  Implementation runs() const;
  const std::string& name() const;

 private:
  friend class SwitchableModel;
  friend class SwitchableLayer;
  struct State;
  std::shared_ptr<State> state_;
};

/// One layer of a model; the model may be gone.
class SwitchableLayer {
 public:
  void enable();
  void disable();
  Implementation runs() const;

 private:
  friend class SwitchableModel;
  struct ModelState;
  SwitchableLayer(std::shared_ptr<ModelState> model, size_t number);
  void set(Implementation wanted);
  std::shared_ptr<ModelState> model_;
  size_t number_;
};

class SwitchableModel {
 public:
  /// Throws std::invalid_argument for a model without layers, which no switch would change.
  SwitchableModel(const ModelClass& of, size_t layers);
  void enable();
  void disable();
  /// Unset: some layers run one implementation, some the other.
  std::optional<Implementation> runs() const;
  size_t layers() const;
  /// Throws std::out_of_range.
  SwitchableLayer layer(size_t number) const;

 private:
  void set(Implementation wanted);
  std::shared_ptr<SwitchableLayer::ModelState> state_;
};

/// A layer's attention: two functions of one signature, as in SwitchableAttention<Tensor(const Tensor& states)>.
template <class Signature>
class SwitchableAttention;

template <class Result, class... Arguments>
class SwitchableAttention<Result(Arguments...)> {
 public:
  using Function = std::function<Result(Arguments...)>;

  /// Throws std::invalid_argument where a function is missing: the switch would have nothing to switch to.
  SwitchableAttention(SwitchableLayer layer, Function original, Function patched)
      : layer_(std::move(layer)), original_(std::move(original)), patched_(std::move(patched)) {
    if (!original_ || !patched_) throw std::invalid_argument("a switchable attention needs an original and a patched function");
  }

  Result operator()(Arguments... arguments) const {
    const Function& runs = layer_.runs() == Implementation::patched ? patched_ : original_;
    return runs(std::forward<Arguments>(arguments)...);
  }

  SwitchableLayer& layer() { return layer_; }
  const SwitchableLayer& layer() const { return layer_; }

 private:
  SwitchableLayer layer_;
  Function original_, patched_;
};

}  // namespace attnbench
