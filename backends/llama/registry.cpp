// Every LLaMA layer: a maker for each, one a file, in the order in which reports show them.
#include "backends/llama/makers.hpp"
#include "harness/worker/backend.hpp"
#include "harness/worker/llama_backend.hpp"

namespace attnbench {

std::vector<std::unique_ptr<LlamaBackend>> make_llama_backends(const Device& device, const Backend& attention) {
  std::vector<std::unique_ptr<LlamaBackend>> layers;
  for (LlamaMaker* make :
       {make_hf_eager, make_attention_switch, make_flagembedding, make_flagembedding_switch, make_fastchat_llama1,
        make_fastchat_llama2, make_fastchat_xformers, make_internvl, make_internvl_flash_v1, make_internvl_flash_v2,
        make_internvl_llava, make_internvl_sdpa, make_internvl_packed, make_internvit})
    layers.push_back(make(device, attention));
  return layers;
}

}  // namespace attnbench
