#include "backends/llama/layer.hpp"

#include <cmath>
#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>

#include "backends/llama/upcast_for_flash.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// The parameters of a layer as Hugging Face names them.
constexpr std::pair<const char*, Tensor LlamaInputs::*> kParameters[] = {
    {"model.layers.0.input_layernorm.weight", &LlamaInputs::norm},
    {"model.layers.0.self_attn.q_proj.weight", &LlamaInputs::wq},
    {"model.layers.0.self_attn.q_proj.lora_A.weight", &LlamaInputs::lora_qa},
    {"model.layers.0.self_attn.q_proj.lora_B.weight", &LlamaInputs::lora_qb},
    {"model.layers.0.self_attn.q_norm.weight", &LlamaInputs::q_norm},
    {"model.layers.0.self_attn.k_proj.weight", &LlamaInputs::wk},
    {"model.layers.0.self_attn.k_norm.weight", &LlamaInputs::k_norm},
    {"model.layers.0.self_attn.v_proj.weight", &LlamaInputs::wv},
    {"model.layers.0.self_attn.v_proj.lora_A.weight", &LlamaInputs::lora_va},
    {"model.layers.0.self_attn.v_proj.lora_B.weight", &LlamaInputs::lora_vb},
    {"model.layers.0.self_attn.o_proj.weight", &LlamaInputs::wo}};

void cast_parameters(LayerTensors& x, CastParts parts) {
  if (parts == CastParts::none) return;
  NamedParameters named;
  for (const auto& [name, member] : kParameters)
    if ((x.*member).defined()) named[name] = x.*member;
  const UpcastPolicy policy = parts == CastParts::norms ? UpcastPolicy::fastchat : UpcastPolicy::flagembedding;
  const NamedParameters cast = upcast_for_flash(named, x.hidden.scalar_type(), policy);
  for (const auto& [name, member] : kParameters)
    if ((x.*member).defined()) x.*member = cast.at(name);
}

/// x w^T in the dtype of x; scale: of the output channels of an int8 weight, which is dequantised here; undefined: none.
Tensor linear_of(const Tensor& x, const Tensor& weight, const Tensor& scale) {
  const Tensor w = weight.to(x.scalar_type());
  return at::linear(x, scale.defined() ? w * scale.to(x.scalar_type()).unsqueeze(1) : w);
}

/// base with what an adapter of a and b makes of the states, if there is one: it computes in its own dtype.
Tensor with_adapter(const Tensor& base, const Tensor& states, const Tensor& a, const Tensor& b) {
  if (!a.defined()) return base;
  return base + at::linear(at::linear(states.to(a.scalar_type()), a), b) * kLoraScale;
}

/// x [b, s, heads d] -> [b, s, heads, d], normalised before if there is a weight for that.
Tensor heads_of(const Tensor& x, const Tensor& norm, int64_t d) {
  return (norm.defined() ? rms_norm(x, norm) : x).unflatten(-1, {-1, d});
}

}  // namespace

LayerTensors leaves(const Case& c, const LlamaInputs& inputs, Pass pass) {
  LayerTensors x = inputs;
  cast_parameters(x, c.llama->cast);
  for (const Differentiated& d : kDifferentiated)
    if (has_gradient(x.*d.input)) x.*d.input = (x.*d.input).detach().requires_grad_(pass == Pass::backward);
  return x;
}

Projected project(const LayerTensors& x, const Case& c, const LlamaInputs& inputs, int64_t first, int64_t count) {
  const Tensor given = x.hidden.narrow(1, first, count), states = x.norm.defined() ? rms_norm(given, x.norm) : given;
  const Tensor q = with_adapter(linear_of(states, x.wq, x.wq_scale), states, x.lora_qa, x.lora_qb);
  const Tensor k = linear_of(states, x.wk, x.wk_scale);
  const Tensor v = with_adapter(linear_of(states, x.wv, x.wv_scale), states, x.lora_va, x.lora_vb);
  const int64_t d = c.problem.d;
  const auto turned = [&](const Tensor& heads) {
    return inputs.position_ids.defined() ? rotary(heads, inputs.position_ids.narrow(1, first, count)) : heads;
  };
  return {turned(heads_of(q, x.q_norm, d)), turned(heads_of(k, x.k_norm, d)), heads_of(v, {}, d)};
}

Tensor rms_norm(const Tensor& x, const Tensor& weight) {
  const Tensor wide = x.to(at::kFloat);
  return weight * (wide * (wide.square().mean(-1, true) + kNormEpsilon).rsqrt()).to(x.scalar_type());
}

Tensor rotary(const Tensor& x, const Tensor& position_ids) {
  const int64_t d = x.size(-1);
  const Tensor exponents = at::arange(0, d, 2, x.options().dtype(at::kFloat).requires_grad(false)) / static_cast<double>(d);
  const Tensor frequencies = at::pow(10000.0, exponents).reciprocal();
  const Tensor half = position_ids.to(at::kFloat).unsqueeze(-1) * frequencies;  // [b or 1, s, d / 2]
  const Tensor angles = at::cat({half, half}, -1).unsqueeze(2);
  const Tensor cos = angles.cos().to(x.scalar_type()), sin = angles.sin().to(x.scalar_type());
  const Tensor turned = at::cat({-x.narrow(-1, d / 2, d / 2), x.narrow(-1, 0, d / 2)}, -1);
  return x * cos + turned * sin;
}

Unpadding unpadding_of(const Tensor& mask) {
  const Tensor host = mask.sum(1).to(at::kCPU).contiguous();
  return {at::nonzero(mask.flatten()).flatten(), {host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + host.numel()}};
}

Tensor unpad(const Tensor& padded, const Unpadding& which) {
  return padded.flatten(0, 1).index_select(0, which.places);
}

Tensor pad(const Tensor& packed, const Unpadding& which, int64_t b, int64_t s) {
  std::vector<int64_t> sizes = packed.sizes().vec();
  sizes[0] = b * s;
  return at::zeros(sizes, packed.options().requires_grad(false)).index_copy(0, which.places, packed).unflatten(0, {b, s});
}

Tensor project_out(const Tensor& o, const LayerTensors& x) {
  return linear_of(o.flatten(2), x.wo, x.wo_scale);
}

void add_gradients(LlamaOutputs& outputs, const LayerTensors& x, const LlamaInputs& inputs, Pass pass) {
  if (pass == Pass::backward) {
    std::vector<Tensor> of;
    for (const Differentiated& d : kDifferentiated)
      if (has_gradient(x.*d.input)) of.push_back(x.*d.input);
    const std::vector<Tensor> gradients = torch::autograd::grad({outputs.out}, of, {inputs.dout.to(outputs.out.scalar_type())});
    size_t next = 0;
    for (const Differentiated& d : kDifferentiated)
      if (has_gradient(x.*d.input)) outputs.*d.gradient = gradients[next++];
  }
  for (Tensor* t : {&outputs.out, &outputs.cache_k, &outputs.cache_v, &outputs.weights})
    if (t->defined()) *t = t->detach();
}

}  // namespace attnbench
