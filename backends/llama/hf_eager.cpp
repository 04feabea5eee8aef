// hf_eager: the layer of Hugging Face's LLaMA as it was before any patch, with a cache and with probabilities handed out.
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/ones.h>

#include "backends/llama/declared_layer.hpp"
#include "backends/llama/eager_attention.hpp"
#include "backends/llama/layer.hpp"

namespace attnbench {
namespace {

using at::Tensor;

class HfEager : public DeclaredLayer {
 public:
  HfEager() : DeclaredLayer(eager_layer("hf_eager")) {}

  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    const LayerTensors x = leaves(inputs, pass);
    const int64_t b = c.problem.b, lk = c.problem.lk, count = c.problem.lq / c.llama->chunks;
    const Tensor real = inputs.mask.defined() ? inputs.mask : at::ones({b, lk}, inputs.hidden.options().dtype(at::kBool));
    Tensor k = inputs.past_k, v = inputs.past_v;
    std::vector<Tensor> out, weights;
    for (int64_t first = 0; first < c.problem.lq; first += count) {
      const Projected tokens = project(x, c, inputs, first, count);
      k = behind(k, tokens.k);
      v = behind(v, tokens.v);
      const Tensor mask = additive_mask(real.narrow(1, 0, k.size(2)), count, inputs.hidden.scalar_type());
      const EagerAttention attention = eager_attention(tokens.q.transpose(1, 2), k, v, mask);
      out.push_back(project_out(attention.o, x));
      weights.push_back(at::constant_pad_nd(attention.weights, {0, lk - k.size(2)}));  // of keys that are still to come
    }
    LlamaOutputs outputs;
    outputs.out = at::cat(out, 1);
    if (c.llama->cache) {
      outputs.cache_k = k;
      outputs.cache_v = v;
    }
    if (c.llama->weights) outputs.weights = at::cat(weights, 2);
    add_gradients(outputs, x, inputs, pass);
    return outputs;
  }

 private:
  /// past [b, hkv, past, d] or undefined, and tokens [b, s, hkv, d] after it.
  static Tensor behind(const Tensor& past, const Tensor& tokens) {
    const Tensor now = tokens.transpose(1, 2);
    return past.defined() ? at::cat({past, now}, 2) : now;
  }
};

}  // namespace

std::unique_ptr<LlamaBackend> make_hf_eager(const Device&, const Backend&) {
  return std::make_unique<HfEager>();
}

}  // namespace attnbench
