#include "backends/llama/layer.hpp"

#include <cmath>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>

namespace attnbench {
namespace {

using at::Tensor;

at::Tensor heads_of(const Tensor& x, const Tensor& weight, int64_t d) {
  return at::linear(x, weight).unflatten(-1, {-1, d});
}

}  // namespace

LayerTensors leaves(const LlamaInputs& inputs, Pass pass) {
  const auto leaf = [&](const Tensor& t) { return t.detach().requires_grad_(pass == Pass::backward); };
  return {leaf(inputs.hidden), leaf(inputs.wq), leaf(inputs.wk), leaf(inputs.wv), leaf(inputs.wo)};
}

Projected project(const LayerTensors& x, const Case& c, const LlamaInputs& inputs, int64_t first, int64_t count) {
  const Tensor states = x.hidden.narrow(1, first, count), ids = inputs.position_ids.narrow(1, first, count);
  const int64_t d = c.problem.d;
  return {rotary(heads_of(states, x.wq, d), ids), rotary(heads_of(states, x.wk, d), ids), heads_of(states, x.wv, d)};
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
  return at::linear(o.flatten(2), x.wo);
}

void add_gradients(LlamaOutputs& outputs, const LayerTensors& x, const LlamaInputs& inputs, Pass pass) {
  if (pass == Pass::backward) {
    const std::vector<Tensor> gradients = torch::autograd::grad({outputs.out}, {x.hidden, x.wq, x.wk, x.wv, x.wo}, {inputs.dout});
    outputs.dhidden = gradients[0];
    outputs.dwq = gradients[1];
    outputs.dwk = gradients[2];
    outputs.dwv = gradients[3];
    outputs.dwo = gradients[4];
  }
  for (Tensor* t : {&outputs.out, &outputs.cache_k, &outputs.cache_v, &outputs.weights})
    if (t->defined()) *t = t->detach();
}

}  // namespace attnbench
