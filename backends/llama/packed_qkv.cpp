#include "backends/llama/packed_qkv.hpp"

#include <fmt/format.h>

#include <stdexcept>
#include <string_view>
#include <utility>

#include "backends/llama/assumed_place.hpp"
#include "backends/llama/cached_layer.hpp"
#include "backends/llama/flash_dtypes.hpp"
#include "backends/llama/packed_attention.hpp"

namespace attnbench {
namespace {

class PackedQkv : public FlashLayer {
 public:
  PackedQkv(const std::string& name, std::string_view who_says, const Backend& attention)
      : FlashLayer(name, attention), who_says_(who_says) {}

  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    require_equal_heads(declaration_, c);
    require_flash_attn(c, pass);
    const auto packed = [&](const ChunkCall& chunk) -> ChunkResult {
      if (chunk.before > 0)
        throw std::invalid_argument(
            fmt::format("a past of {} tokens: {} packs queries, keys and values in one tensor, and {} keys do "
                        "not go with {} queries",
                        chunk.before, declaration_.name, chunk.before + chunk.count, chunk.count));
      require_flash_dtypes(chunk.q, chunk.k, chunk.v);
      return {attend_padded(attention_, {.q = chunk.q, .k = chunk.k, .v = chunk.v, .mask = inputs.mask, .stacked = Stacked::qkv}),
              {}};
    };
    LlamaOutputs outputs = run_layer(c, inputs, pass, packed);
    outputs.warnings = capability_warnings(who_says_, c);
    return without_weights(c, std::move(outputs));
  }

 private:
  std::string_view who_says_;
};

}  // namespace

std::unique_ptr<LlamaBackend> make_packed_qkv(const std::string& name, std::string_view who_says, const Backend& attention) {
  return std::make_unique<PackedQkv>(name, who_says, attention);
}

}  // namespace attnbench
