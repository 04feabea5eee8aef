#include "backends/llama/upcast_for_flash.hpp"

#include <algorithm>
#include <set>
#include <string_view>

namespace attnbench {
namespace {

constexpr std::string_view kAdapter = "lora_A";

std::string module_of(const std::string& parameter) {
  const size_t dot = parameter.rfind('.');
  return dot == std::string::npos ? "" : parameter.substr(0, dot);
}

bool contains(const std::string& name, std::string_view part) {
  return name.find(part) != std::string::npos;
}

/// Modules with a child lora_A, each with a dot behind its name.
std::set<std::string> lora_layers_of(const NamedParameters& parameters) {
  std::set<std::string> layers;
  for (const auto& [name, tensor] : parameters)
    if (const size_t at = name.find(kAdapter); at != std::string::npos) layers.insert(name.substr(0, at));
  return layers;
}

}  // namespace

NamedParameters upcast_for_flash(NamedParameters parameters, at::ScalarType dtype, UpcastPolicy policy) {
  const std::set<std::string> lora_layers =
      policy == UpcastPolicy::flagembedding ? lora_layers_of(parameters) : std::set<std::string>{};
  const auto is_cast = [&](const std::string& name) {
    const std::string module = module_of(name);
    const bool is_outer = contains(module, "lm_head") || contains(module, "embed_tokens");
    if (contains(module, "norm") || (is_outer && parameters.contains(module + ".weight"))) return true;
    return std::ranges::any_of(lora_layers, [&](const std::string& layer) { return name.starts_with(layer); });
  };
  for (auto& [name, tensor] : parameters)
    if (tensor.is_floating_point() && is_cast(name)) tensor = tensor.to(dtype);
  return parameters;
}

}  // namespace attnbench
