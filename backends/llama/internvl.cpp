// internvl: what InternVL patches LLaMA with, which is the choice of one line: its SDPA forward wherever torch has
// scaled_dot_product_attention, whatever the SM and the mask; else the packed one, over the flash-attn that the import finds.
#include <fmt/format.h>

#include "backends/llama/assumed_place.hpp"
#include "backends/llama/declared_layer.hpp"
#include "backends/llama/makers.hpp"
#include "harness/run/version.hpp"

namespace attnbench {
namespace {

class InternvlDispatch : public DeclaredLayer {
 public:
  InternvlDispatch(const Device& device, const Backend& attention)
      : DeclaredLayer(fused_layer("internvl", attention)),
        sdpa_(make_internvl_sdpa(device, attention)),
        flash_v1_(make_internvl_flash_v1(device, attention)),
        flash_v2_(make_internvl_flash_v2(device, attention)) {}

  std::optional<std::string> why_not(const Case& c, Pass pass, const Device& device) const override {
    return pick(c).layer.why_not(c, pass, device);
  }
  LayerChoice choose(const Case& c, Pass pass, const Device& device) const override {
    const LayerChoice picked = pick(c);
    return {picked.layer.choose(c, pass, device).layer, picked.why};
  }
  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    return pick(c).layer.run(c, inputs, pass);
  }

 private:
  LayerChoice pick(const Case& c) const {
    const std::string torch = torch_version(c);
    if (compare_versions(torch, "2.0") >= 0)
      return {*sdpa_, fmt::format("internvl_sdpa: torch {} has scaled_dot_product_attention, and nothing else is asked", torch)};
    const std::string& flash_attn = c.llama->assume.flash_attn;
    const bool is_v1 = !flash_attn.empty() && compare_versions(flash_attn, "2.0") < 0;
    return {is_v1 ? *flash_v1_ : *flash_v2_,
            fmt::format("internvl_flash_{}: torch {} has no scaled_dot_product_attention", is_v1 ? "v1" : "v2", torch)};
  }

  const std::unique_ptr<LlamaBackend> sdpa_, flash_v1_, flash_v2_;
};

}  // namespace

std::unique_ptr<LlamaBackend> make_internvl(const Device& device, const Backend& attention) {
  return std::make_unique<InternvlDispatch>(device, attention);
}

}  // namespace attnbench
