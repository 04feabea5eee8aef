// internvl_sdpa: InternVL's patch of LLaMA wherever LibTorch has scaled_dot_product_attention. In training it says is_causal and
// looks at no mask; in evaluation it is eager, with the mask that the model's own hook has made.
#include <ATen/ops/_scaled_dot_product_attention_math.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/ones.h>
#include <torch/version.h>

#include "backends/attention/sdpa.hpp"
#include "backends/llama/declared_layer.hpp"
#include "backends/llama/eager_attention.hpp"
#include "backends/llama/internvl_refusals.hpp"
#include "backends/llama/layer.hpp"

namespace attnbench {
namespace {

using at::Tensor;

class InternvlSdpa : public DeclaredLayer {
 public:
  InternvlSdpa()
      : DeclaredLayer(declared()), evaluation_(*this, declaration_, ""), training_(*this, in_training_declared(), "") {}

  LayerChoice choose(const Case& c, Pass, const Device&) const override { return {c.llama->train ? training_ : evaluation_, ""}; }

  bool has_mask_of_model() const override { return true; }

  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    refuse_beyond_training(declaration_.name, c);
    const LayerTensors x = leaves(c, inputs, pass);
    const Projected tokens = project(x, c, inputs, 0, c.problem.lq);
    const Tensor q = tokens.q.transpose(1, 2), k = tokens.k.transpose(1, 2), v = tokens.v.transpose(1, 2);
    LlamaOutputs outputs;
    const auto mask = [&] { return mask_of_model(c, inputs, q.scalar_type()); };
    outputs.out = project_out(c.llama->train ? in_training(q, k, v) : eager_attention(q, k, v, mask()).o, x);
    add_gradients(outputs, x, inputs, pass);
    return outputs;
  }

 private:
  static Declaration declared() {
    Declaration declaration = eager_layer("internvl_sdpa");
    declaration.implementation = "pytorch_math";
    return declaration;
  }
  /// No mask hides a key there, so that a padded query has what it sees: nothing that is declared.
  static Declaration in_training_declared() {
    Declaration declaration = declared();
    declaration.profile = sdpa_math_profile();
    declaration.conventions.empty_row = Conventions::EmptyRow::zero;
    return declaration;
  }

  /// Pinned to the implementation that every device has, where the original leaves the choice to the dispatcher.
  static Tensor in_training(const Tensor& q, const Tensor& k, const Tensor& v) {
    const Tensor o = std::get<0>(at::_scaled_dot_product_attention_math(q, k, v, std::nullopt, 0.0, true));
    return o.transpose(1, 2);
  }

  /// Without a mask the model makes one of all keys, so that the layer always has one; with as many keys as the case says, of
  /// which those beyond past + s are seen.
  static Tensor mask_of_model(const Case& c, const LlamaInputs& inputs, at::ScalarType dtype) {
    const auto options = inputs.hidden.options().dtype(at::kBool);
    const Tensor real = inputs.mask.defined() ? inputs.mask : at::ones({c.problem.b, c.problem.lk}, options);
    const Tensor mask = additive_mask(real, c.problem.lq, dtype);
    const int64_t keys = c.llama->mask_keys;
    return keys > 0 ? at::constant_pad_nd(mask, {0, keys - mask.size(3)}) : mask;
  }

  const LayerPath evaluation_, training_;
};

}  // namespace

std::unique_ptr<LlamaBackend> make_internvl_sdpa(const Device&, const Backend&) {
  return std::make_unique<InternvlSdpa>();
}

}  // namespace attnbench
