// `auto` in the layers: each of them over every attention that may be picked, and the one picked for a case and a pass runs it.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "harness/run/dispatch.hpp"
#include "harness/worker/backend.hpp"
#include "harness/worker/llama_backend.hpp"

namespace attnbench {
namespace {

struct LayerVariant {
  const Backend* attention;
  std::unique_ptr<LlamaBackend> layer;
};

class DispatchedLayer : public LlamaBackend {
 public:
  /// `variants`: one layer over each attention, in order of preference.
  DispatchedLayer(std::vector<LayerVariant> variants, Device device, std::optional<int> assume_sm)
      : variants_(std::move(variants)), device_(std::move(device)), assume_sm_(assume_sm) {}

  const Declaration& declaration() const override { return first().declaration(); }
  std::string attention() const override { return kAutoAttention; }
  std::optional<std::string> why_not(const Case& c, Pass pass, const Device& device) const override {
    return choose(c, pass, device).layer.why_not(c, pass, device);
  }
  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    return choose(c, pass, device_).layer.run(c, inputs, pass);
  }

  LayerChoice choose(const Case& c, Pass pass, const Device& device) const override {
    const LayerChoice preferred = first().choose(c, pass, device);
    if (preferred.layer.attention().empty()) return preferred;  // this case comes to a layer that calls nothing
    const auto takes = [&](const LayerVariant& one) { return !one.layer->why_not(c, pass, device); };
    if (std::ranges::none_of(variants_, takes)) return preferred;  // the layer's own affair, of which it says why
    const AttentionChoice choice = choose_attention(candidates(c, pass, device), query(c, pass, device));
    const auto picked = std::ranges::find_if(
        variants_, [&](const LayerVariant& one) { return one.attention->declaration().name == choice.picked.name; });
    const LayerChoice inner = picked->layer->choose(c, pass, device);
    const std::string before = inner.why.empty() ? "" : inner.why + "; ";
    return {inner.layer, before + sentence_of(choice)};
  }

 private:
  const LlamaBackend& first() const { return *variants_.front().layer; }

  std::vector<AttentionCandidate> candidates(const Case& c, Pass pass, const Device& device) const {
    std::vector<AttentionCandidate> all;
    for (const LayerVariant& one : variants_) {
      auto why = one.layer->why_not(c, pass, device);
      if (!why) why = one.attention->why_not(one.layer->attention_case(c), pass, device);
      all.push_back(candidate_of(one.attention->declaration(), why));
    }
    return all;
  }

  SafetyQuery query(const Case& c, Pass pass, const Device& device) const {
    const std::optional<int> assumed = c.llama->assume.sm ? c.llama->assume.sm : assume_sm_;
    return safety_query(c.problem, pass, assumed ? assumed : device.sm);
  }

  const std::vector<LayerVariant> variants_;
  const Device device_;
  const std::optional<int> assume_sm_;
};

}  // namespace

std::vector<std::unique_ptr<LlamaBackend>> make_dispatched_layers(const Device& device,
                                                                  const std::vector<const Backend*>& candidates,
                                                                  std::optional<int> assume_sm) {
  std::vector<std::vector<LayerVariant>> by_layer;
  for (const Backend* attention : candidates) {
    std::vector<std::unique_ptr<LlamaBackend>> over_it = make_llama_backends(device, *attention);
    by_layer.resize(over_it.size());
    for (size_t i = 0; i < over_it.size(); ++i) by_layer[i].push_back({attention, std::move(over_it[i])});
  }
  std::vector<std::unique_ptr<LlamaBackend>> layers;
  for (std::vector<LayerVariant>& variants : by_layer) {
    if (variants.front().layer->attention().empty())
      layers.push_back(std::move(variants.front().layer));
    else
      layers.push_back(std::make_unique<DispatchedLayer>(std::move(variants), device, assume_sm));
  }
  return layers;
}

}  // namespace attnbench
