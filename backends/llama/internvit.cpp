// internvit: the attention of InternVL's vision tower as it is written out without flash-attn: (q scale) k^T, not causal, no
// mask, no RoPE, the softmax in the dtype of the states. Its optional norm of queries and keys is the case's qk_norm=on.
#include <cmath>

#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>

#include "backends/llama/declared_layer.hpp"
#include "backends/llama/layer.hpp"

namespace attnbench {
namespace {

using at::Tensor;

class Internvit : public DeclaredLayer {
 public:
  Internvit() : DeclaredLayer(eager_layer("internvit")) {
    declaration_.capabilities.masks = {Mask::none};
    declaration_.capabilities.gqa = false;
  }

  std::optional<std::string> why_not(const Case& c, Pass pass, const Device& device) const override {
    if (const auto why = DeclaredLayer::why_not(c, pass, device)) return why;
    if (c.llama->positions != PositionIds::none) return "internvit has no RoPE: it takes positions=none";
    if (c.llama->mask) return "internvit takes no mask: images have no padding";
    if (c.llama->past > 0 || c.llama->cache || c.llama->chunks > 1) return "internvit has no cache";
    if (c.llama->weights) return "internvit returns no probabilities";
    return std::nullopt;
  }

  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    const LayerTensors x = leaves(c, inputs, pass);
    const Projected tokens = project(x, c, inputs, 0, c.problem.lq);
    const Tensor q = tokens.q.transpose(1, 2), k = tokens.k.transpose(1, 2), v = tokens.v.transpose(1, 2);
    const Tensor scores = at::matmul(q * (1 / std::sqrt(static_cast<double>(c.problem.d))), k.transpose(2, 3));
    LlamaOutputs outputs;
    outputs.out = project_out(at::matmul(at::softmax(scores, -1), v).transpose(1, 2), x);
    add_gradients(outputs, x, inputs, pass);
    return outputs;
  }
};

}  // namespace

std::unique_ptr<LlamaBackend> make_internvit(const Device&, const Backend&) {
  return std::make_unique<Internvit>();
}

}  // namespace attnbench
