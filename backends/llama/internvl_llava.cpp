// internvl_llava: InternVL's later variant for grouped heads, which keeps them apart in the cache and repeats them for the stack;
// asked for weights it warns, and returns none.
#include <stdexcept>

#include <fmt/format.h>

#include "backends/attention/eager.hpp"
#include "backends/llama/assumed_place.hpp"
#include "backends/llama/cached_layer.hpp"
#include "backends/llama/flash_dtypes.hpp"
#include "backends/llama/flash_layer.hpp"
#include "backends/llama/packed_attention.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// [b, s, hkv, d] -> [b, s, hkv group, d]
Tensor repeat_heads(const Tensor& x, int64_t group) {
  return repeat_kv(x.transpose(1, 2), group).transpose(1, 2);
}

class InternvlLlava : public FlashLayer {
 public:
  explicit InternvlLlava(const Backend& attention) : FlashLayer("internvl_llava", attention) {}

  Case attention_case(const Case& c) const override {
    Case call = FlashLayer::attention_case(c);
    call.problem.hkv = call.problem.hq;
    return call;
  }

  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    require_flash_attn(c, pass);
    const auto stacked = [&](const ChunkCall& chunk) -> ChunkResult {
      if (chunk.before > 0)
        throw std::invalid_argument(fmt::format("{}: a past: {} queries and {} keys cannot be stacked", declaration_.name,
                                                chunk.count, chunk.before + chunk.count));
      require_flash_dtypes(chunk.q, chunk.k, chunk.v);
      const int64_t group = c.problem.group();
      const Tensor k = repeat_heads(chunk.k, group), v = repeat_heads(chunk.v, group);
      return {attend_padded(attention_, {.q = chunk.q, .k = k, .v = v, .mask = inputs.mask, .stacked = Stacked::qkv}), {}};
    };
    return without_weights(c, run_layer(c, inputs, pass, stacked));
  }
};

}  // namespace

std::unique_ptr<LlamaBackend> make_internvl_llava(const Device&, const Backend& attention) {
  return std::make_unique<InternvlLlava>(attention);
}

}  // namespace attnbench
