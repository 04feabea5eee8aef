#include "harness/llama/inputs.hpp"

#include <cmath>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/torch_dtype.hpp"
#include "harness/llama/numbers.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// factor N, rounded to the dtype.
Tensor draw(LayerStream stream, const Case& c, std::vector<int64_t> sizes, double factor) {
  const Tensor numbers = at::empty(sizes, at::kFloat);
  draw_normal(stream, c.seed, numbers.mutable_data_ptr<float>(), numbers.numel());
  return (numbers * factor).to(torch_dtype(c.problem.dtype));
}

/// Real tokens among past + s, in each row where the case's padding leaves them.
Tensor mask_of(const Case& c) {
  const Problem& p = c.problem;
  const auto* lengths = std::get_if<std::vector<int64_t>>(&p.lens);
  if (!lengths) return at::ones({p.b, p.lk}, at::kBool);
  const Tensor mask = at::zeros({p.b, p.lk}, at::kBool);
  bool* data = mask.mutable_data_ptr<bool>();
  for (int64_t n = 0; n < p.b; ++n)
    for (const int64_t position : token_positions(p.pad, (*lengths)[static_cast<size_t>(n)], p.lk, n, c.seed))
      data[n * p.lk + position] = true;
  return mask;
}

/// Of each token in its row, or, packed, in its sample.
Tensor position_ids_of(const Case& c, const std::vector<int64_t>& samples) {
  const Problem& p = c.problem;
  if (samples.empty()) {
    const Tensor ids = at::arange(c.llama->past, p.lk, at::kLong).unsqueeze(0) + c.llama->shift;
    return c.llama->positions == PositionIds::one_row ? ids : ids.expand({p.b, p.lq}).contiguous();
  }
  std::vector<int64_t> ids;
  for (const int64_t sample : samples)
    for (int64_t i = 0; i < sample; ++i) ids.push_back(i + c.llama->shift);
  return at::tensor(ids, at::kLong).unsqueeze(0);
}

/// Lengths of the samples of a packed row, the tail among them; empty: the case is padded.
std::vector<int64_t> samples_of(const Problem& p) {
  if (p.layout != Layout::packed) return {};
  std::vector<int64_t> samples = std::get<std::vector<int64_t>>(p.lens);
  if (p.tail > 0) samples.push_back(p.tail);
  return samples;
}

}  // namespace

Tensor LlamaInputs::real_queries() const {
  const int64_t s = hidden.size(1);
  if (!mask.defined()) return at::ones({hidden.size(0), s}, hidden.options().dtype(at::kBool));
  return mask.narrow(1, mask.size(1) - s, s);
}

LlamaInputs make_llama_inputs(const Case& c) {
  const Problem& p = c.problem;
  const LlamaLayer& layer = *c.llama;
  const std::vector<int64_t> samples = samples_of(p);
  const int64_t b = samples.empty() ? p.b : 1, e = p.hq * p.d;
  const double of_weights = 1 / std::sqrt(static_cast<double>(e));
  LlamaInputs in;
  in.hidden = draw(LayerStream::hidden, c, {b, p.lq, e}, layer.gain);
  in.wq = draw(LayerStream::wq, c, {p.hq * p.d, e}, of_weights);
  in.wk = draw(LayerStream::wk, c, {p.hkv * p.d, e}, of_weights);
  in.wv = draw(LayerStream::wv, c, {p.hkv * p.d, e}, of_weights);
  in.wo = draw(LayerStream::wo, c, {e, p.hq * p.d}, of_weights);
  if (layer.past > 0) {
    in.past_k = draw(LayerStream::past_k, c, {b, p.hkv, layer.past, p.d}, 1);
    in.past_v = draw(LayerStream::past_v, c, {b, p.hkv, layer.past, p.d}, 1);
  }
  if (layer.mask) in.mask = mask_of(c);
  in.position_ids = position_ids_of(c, samples);
  if (!samples.empty()) {
    std::vector<int32_t> sums(1, 0);
    for (const int64_t sample : samples) sums.push_back(sums.back() + static_cast<int32_t>(sample));
    in.cu_seqlens = at::tensor(sums, at::kInt);
  }
  in.dout = draw(LayerStream::dout, c, {b, p.lq, e}, 1);
  if (!layer.pad_dout) in.dout = in.dout * in.real_queries().unsqueeze(-1);
  return in;
}

LlamaInputs to_device(const LlamaInputs& inputs, c10::Device device) {
  LlamaInputs moved = inputs;
  for (Tensor* t : {&moved.hidden, &moved.wq, &moved.wk, &moved.wv, &moved.wo, &moved.past_k, &moved.past_v, &moved.mask,
                    &moved.position_ids, &moved.cu_seqlens, &moved.dout})
    if (t->defined()) *t = t->to(device);
  return moved;
}

}  // namespace attnbench
