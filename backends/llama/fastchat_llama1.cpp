// fastchat_llama1: FastChat's patch of the attention of the first LLaMA, packed QKV. What tells it from FlagEmbedding's is how it
// speaks of an SM below 8.0 (a warning, not a print): the computation is one.
#include "backends/llama/assumed_place.hpp"
#include "backends/llama/packed_qkv.hpp"

namespace attnbench {

std::unique_ptr<LlamaBackend> make_fastchat_llama1(const Device&, const Backend& attention) {
  return make_packed_qkv("fastchat_llama1", kFastchatSays, attention);
}

}  // namespace attnbench
