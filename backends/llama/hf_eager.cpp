// hf_eager: the layer of Hugging Face's LLaMA as it was before any patch, with a cache and with probabilities handed out.
#include <ATen/ops/ones.h>

#include "backends/llama/cached_layer.hpp"
#include "backends/llama/declared_layer.hpp"
#include "backends/llama/eager_attention.hpp"

namespace attnbench {
namespace {

class HfEager : public DeclaredLayer {
 public:
  HfEager() : DeclaredLayer(eager_layer("hf_eager")) {}

  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    const auto options = inputs.hidden.options().dtype(at::kBool);
    const at::Tensor real = inputs.mask.defined() ? inputs.mask : at::ones({c.problem.b, c.problem.lk}, options);
    return run_layer(c, inputs, pass, [&](const ChunkCall& chunk) -> ChunkResult {
      const at::Tensor seen = real.narrow(1, 0, chunk.before + chunk.count);
      const at::Tensor mask = additive_mask(seen, chunk.count, inputs.hidden.scalar_type());
      const EagerAttention eager =
          eager_attention(chunk.q.transpose(1, 2), chunk.k.transpose(1, 2), chunk.v.transpose(1, 2), mask);
      return {eager.o, eager.weights};
    });
  }
};

}  // namespace

std::unique_ptr<LlamaBackend> make_hf_eager(const Device&, const Backend&) {
  return std::make_unique<HfEager>();
}

}  // namespace attnbench
