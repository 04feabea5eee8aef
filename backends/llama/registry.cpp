// Every LLaMA layer: a maker for each, one a file, in the order in which reports show them.
#include "harness/worker/backend.hpp"
#include "harness/worker/llama_backend.hpp"

namespace attnbench {

using LayerMaker = std::unique_ptr<LlamaBackend>(const Device& device, const Backend& attention);

std::vector<std::unique_ptr<LlamaBackend>> make_llama_backends(const Device& device, const Backend& attention) {
  std::vector<std::unique_ptr<LlamaBackend>> layers;
  for (LayerMaker* make : std::initializer_list<LayerMaker*>{}) layers.push_back(make(device, attention));
  return layers;
}

}  // namespace attnbench
