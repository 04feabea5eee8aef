// fastchat_llama2: FastChat's patch of LLaMA-2 attention. Key heads stay as few as they are; queries and a stacked K/V are
// unpadded by masks of their own; a cache is concatenated.
//
// The mask goes through a hook of the model, which takes the mask of the new tokens: with a past it puts that many trues before
// it, and where all is true it drops the mask (dense attention). Hence two traps, both here:
// - chunks: each call gives the mask of its own tokens, as FastChat's self-test does. Padding that stands in the cache counts as
//   real from then on.
// - past: the case's mask covers past + s tokens, as transformers' generate() gives it, and gets its past twice. The keys do not
//   go with it, unless all is true.
//
// A past needs flash-attn 2.1.0, whose causal mask ends at the last key. The version is compared as text: 2.10.0 is later than
// that, and 10.0 is not.
#include <fmt/format.h>

#include <stdexcept>

#include <ATen/ops/all.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>

#include "backends/llama/assumed_place.hpp"
#include "backends/llama/cached_layer.hpp"
#include "backends/llama/flash_dtypes.hpp"
#include "backends/llama/flash_layer.hpp"
#include "backends/llama/packed_attention.hpp"

namespace attnbench {
namespace {

/// What the model's hook makes of the mask [b, given] of a call with `before` cached tokens: bool [b, before + given], or
/// undefined where all is true.
at::Tensor hooked_mask(const at::Tensor& mask, int64_t before) {
  if (!mask.defined()) return mask;
  const at::Tensor whole = at::cat({at::ones({mask.size(0), before}, mask.options()), mask}, 1);
  return at::all(whole).item<bool>() ? at::Tensor() : whole;
}

class FastchatLlama2 : public FlashLayer {
 public:
  explicit FastchatLlama2(const Backend& attention) : FlashLayer("fastchat_llama2", attention) {}

  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    require_flash_attn(c, pass);
    const auto unpadded = [&](const ChunkCall& chunk) -> ChunkResult {
      require_version_of_past(c, chunk.before);
      const at::Tensor mask = mask_of(c, inputs, chunk);
      require_flash_dtypes(chunk.q, chunk.k, chunk.v);
      return {attend_padded(attention_, {.q = chunk.q, .k = chunk.k, .v = chunk.v, .mask = mask, .stacked = Stacked::kv}), {}};
    };
    LlamaOutputs outputs = run_layer(c, inputs, pass, unpadded);
    outputs.warnings = capability_warnings(kFastchatSays, c);
    return without_weights(c, std::move(outputs));
  }

 private:
  void require_version_of_past(const Case& c, int64_t before) const {
    const std::string& version = c.llama->assume.flash_attn;
    if (before == 0 || version.empty() || version >= "2.1.0") return;
    throw std::invalid_argument(fmt::format("a past of {} tokens: {} needs flash-attn 2.1.0 or later, and {} is less as text",
                                            before, declaration_.name, version));
  }

  at::Tensor mask_of(const Case& c, const LlamaInputs& inputs, const ChunkCall& chunk) const {
    if (!inputs.mask.defined()) return {};
    const bool with_past = c.llama->past > 0;
    const at::Tensor given =
        inputs.mask.narrow(1, with_past ? 0 : chunk.first, with_past ? chunk.before + chunk.count : chunk.count);
    const at::Tensor mask = hooked_mask(given, chunk.before);
    const int64_t keys = chunk.before + chunk.count;
    if (mask.defined() && mask.size(1) != keys)
      throw std::invalid_argument(
          fmt::format("a mask of {} tokens beside a past of {}: {} puts the past before it once more, and {} "
                      "columns do not go with {} keys",
                      given.size(1), chunk.before, declaration_.name, mask.size(1), keys));
    return mask;
  }
};

}  // namespace

std::unique_ptr<LlamaBackend> make_fastchat_llama2(const Device&, const Backend& attention) {
  return std::make_unique<FastchatLlama2>(attention);
}

}  // namespace attnbench
