#include "backends/llama/packed_qkv.hpp"

#include <fmt/format.h>

#include <stdexcept>
#include <utility>

#include "backends/llama/cached_layer.hpp"
#include "backends/llama/flash_dtypes.hpp"
#include "backends/llama/packed_attention.hpp"

namespace attnbench {
namespace {

class PackedQkv : public FlashLayer {
 public:
  using FlashLayer::FlashLayer;

  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    require_equal_heads(declaration_, c);
    return run_layer(c, inputs, pass, [&](const ChunkCall& chunk) -> ChunkResult {
      if (chunk.before > 0)
        throw std::invalid_argument(
            fmt::format("a past of {} tokens: {} packs queries, keys and values in one tensor, and {} keys do "
                        "not go with {} queries",
                        chunk.before, declaration_.name, chunk.before + chunk.count, chunk.count));
      require_flash_dtypes(chunk.q, chunk.k, chunk.v);
      return {attend_padded(attention_, {.q = chunk.q, .k = chunk.k, .v = chunk.v, .mask = inputs.mask}), {}};
    });
  }
};

}  // namespace

std::unique_ptr<LlamaBackend> make_packed_qkv(std::string name, const Backend& attention) {
  return std::make_unique<PackedQkv>(std::move(name), attention);
}

}  // namespace attnbench
