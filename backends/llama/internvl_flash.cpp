// internvl_flash_v1, internvl_flash_v2: InternVL's packed-QKV patch of LLaMA over either entry of flash-attn, which it takes as
// the import gives it: the call is the same, but v1 aligns its causal mask with the first key and ends at head dim 128.
// internvl_llava: the later variant for grouped heads, which keeps them apart in the cache and repeats them for the stack;
// asked for weights it warns, and returns none.
#include <stdexcept>

#include <fmt/format.h>

#include "backends/attention/eager.hpp"
#include "backends/llama/assumed_place.hpp"
#include "backends/llama/cached_layer.hpp"
#include "backends/llama/declared_layer.hpp"
#include "backends/llama/flash_dtypes.hpp"
#include "backends/llama/flash_layer.hpp"
#include "backends/llama/internvl_refusals.hpp"
#include "backends/llama/layer.hpp"
#include "backends/llama/packed_attention.hpp"

namespace attnbench {
namespace {

using at::Tensor;

enum class FlashEntry { v1, v2 };
constexpr int64_t kLargestHeadDimOfV1 = 128;

class InternvlFlash : public DeclaredLayer {
 public:
  InternvlFlash(const Backend& attention, FlashEntry entry)
      : DeclaredLayer(fused_layer(entry == FlashEntry::v1 ? "internvl_flash_v1" : "internvl_flash_v2", attention)),
        attention_(attention),
        entry_(entry) {}

  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    refuse_beyond_training(declaration_.name, c);
    require_flash_attn(c, pass);
    const bool is_v1 = entry_ == FlashEntry::v1;
    if (is_v1 && c.problem.d > kLargestHeadDimOfV1)
      throw std::invalid_argument(
          fmt::format("{}: head dim {}, where flash-attn 1 ends at {}", declaration_.name, c.problem.d, kLargestHeadDimOfV1));
    const LayerTensors x = leaves(c, inputs, pass);
    const Projected tokens = project(x, c, inputs, 0, c.problem.lq);
    require_flash_dtypes(tokens.q, tokens.k, tokens.v);
    LlamaOutputs outputs;
    const Align align = is_v1 ? Align::top_left : Align::bottom_right;
    const Tensor o = attend_padded(attention_, {tokens.q, tokens.k, tokens.v, inputs.mask, Stacked::qkv, true, align});
    outputs.out = project_out(o, x);
    add_gradients(outputs, x, inputs, pass);
    return outputs;
  }

 private:
  const Backend& attention_;
  FlashEntry entry_;
};

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

std::unique_ptr<LlamaBackend> make_internvl_flash_v1(const Device&, const Backend& attention) {
  return std::make_unique<InternvlFlash>(attention, FlashEntry::v1);
}
std::unique_ptr<LlamaBackend> make_internvl_flash_v2(const Device&, const Backend& attention) {
  return std::make_unique<InternvlFlash>(attention, FlashEntry::v2);
}
std::unique_ptr<LlamaBackend> make_internvl_llava(const Device&, const Backend& attention) {
  return std::make_unique<InternvlLlava>(attention);
}

}  // namespace attnbench
