// flagembedding: FlagEmbedding's patch of LLaMA attention for training, packed QKV. Asked for a cache it returns one; asked for
// weights it warns and returns none.
#include "backends/llama/assumed_place.hpp"
#include "backends/llama/packed_qkv.hpp"

namespace attnbench {

std::unique_ptr<LlamaBackend> make_flagembedding(const Device&, const Backend& attention) {
  return make_packed_qkv("flagembedding", kFlagembeddingSays, attention);
}

}  // namespace attnbench
