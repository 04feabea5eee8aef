// fastchat_xformers: FastChat's patch for GPUs older than SM 8.0. The model's 4-D mask arrives, and one element of it, [0, 0, 0,
// 1], decides for all rows: none, or 0 there, means no bias at all; else a triangular bias that begins at the first key and knows
// no padding. Hence the traps:
// - without a mask it is not causal;
// - padded keys are seen (behind real queries in right padding, which the triangle hides; not in left padding);
// - with a past the first query sees key 1, so that a chunk sees its own future, unless key 1 of the first row is padding: then
//   the triangle begins at the first key, whatever the past;
// - with one key there is no such element.
// weights=on takes the eager path, with the whole mask.
#include <fmt/format.h>

#include <stdexcept>

#include "backends/llama/cached_layer.hpp"
#include "backends/llama/declared_layer.hpp"
#include "backends/llama/eager_attention.hpp"
#include "backends/llama/packed_attention.hpp"

namespace attnbench {
namespace {

class FastchatXformers : public DeclaredLayer {
 public:
  explicit FastchatXformers(const Backend& attention)
      : DeclaredLayer(declared(attention)),
        attention_(attention),
        fused_(*this, declaration_, DeclaredLayer::attention()),
        eager_(*this, eager_layer(declaration_.name), "") {}

  LayerChoice choose(const Case& c, Pass, const Device&) const override { return {c.llama->weights ? eager_ : fused_, ""}; }

  Case attention_case(const Case& c) const override {
    Case call = DeclaredLayer::attention_case(c);
    call.problem.align = Align::top_left;
    return call;
  }

  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    require_equal_heads(declaration_, c);
    return run_layer(c, inputs, pass, [&](const ChunkCall& chunk) -> ChunkResult {
      at::Tensor mask;
      if (inputs.mask.defined())
        mask = additive_mask(inputs.mask.narrow(1, 0, chunk.before + chunk.count), chunk.count, chunk.q.scalar_type());
      if (c.llama->weights) {
        const auto heads_first = [](const at::Tensor& x) { return x.transpose(1, 2); };
        const EagerAttention eager = eager_attention(heads_first(chunk.q), heads_first(chunk.k), heads_first(chunk.v), mask);
        return {eager.o, eager.weights};
      }
      const bool causal = is_triangular(mask);
      const PaddedCall call{.q = chunk.q, .k = chunk.k, .v = chunk.v, .mask = {}, .causal = causal, .align = Align::top_left};
      return {attend_padded(attention_, call), {}};
    });
  }

 private:
  /// Padding is not known to what is called, so that padded rows are like any others.
  static FusedDeclaration declared(const Backend& attention) {
    FusedDeclaration declaration = fused_layer("fastchat_xformers", attention);
    declaration.conventions.padded_rows_zero = false;
    return declaration;
  }

  bool is_triangular(const at::Tensor& mask) const {
    if (!mask.defined()) return false;
    if (mask.size(3) < 2)
      throw std::invalid_argument(
          fmt::format("one key: {} asks element [0, 0, 0, 1] of the mask whether it is causal, and the mask "
                      "[{}, 1, 1, 1] has none",
                      declaration_.name, mask.size(0)));
    return mask.select(0, 0).select(0, 0).select(0, 0).select(0, 1).item<double>() != 0;
  }

  const Backend& attention_;
  const LayerPath fused_, eager_;
};

}  // namespace

std::unique_ptr<LlamaBackend> make_fastchat_xformers(const Device&, const Backend& attention) {
  return std::make_unique<FastchatXformers>(attention);
}

}  // namespace attnbench
