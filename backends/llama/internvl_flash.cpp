// internvl_flash_v1, internvl_flash_v2: InternVL's packed-QKV patch of LLaMA over either entry of flash-attn, which it takes as
// the import gives it: the call is the same, but v1 aligns its causal mask with the first key and ends at head dim 128.
#include <stdexcept>

#include <fmt/format.h>

#include "backends/llama/assumed_place.hpp"
#include "backends/llama/declared_layer.hpp"
#include "backends/llama/flash_dtypes.hpp"
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

}  // namespace

std::unique_ptr<LlamaBackend> make_internvl_flash_v1(const Device&, const Backend& attention) {
  return std::make_unique<InternvlFlash>(attention, FlashEntry::v1);
}
std::unique_ptr<LlamaBackend> make_internvl_flash_v2(const Device&, const Backend& attention) {
  return std::make_unique<InternvlFlash>(attention, FlashEntry::v2);
}

}  // namespace attnbench
