#include "harness/llama/inputs.hpp"

#include <cmath>
#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/inputs.hpp"
#include "harness/attention/torch_dtype.hpp"
#include "harness/llama/numbers.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// factor N, float32.
Tensor draw_float(LayerStream stream, const Case& c, std::vector<int64_t> sizes, double factor) {
  const Tensor numbers = at::empty(sizes, at::kFloat);
  draw_normal(stream, c.seed, numbers.mutable_data_ptr<float>(), numbers.numel());
  return numbers * factor;
}

/// factor N, rounded to the dtype.
Tensor draw(LayerStream stream, const Case& c, std::vector<int64_t> sizes, double factor) {
  return draw_float(stream, c, std::move(sizes), factor).to(torch_dtype(c.problem.dtype));
}

at::ScalarType dtype_of_part(const Case& c, bool is_fp32) {
  return is_fp32 ? at::kFloat : torch_dtype(c.problem.dtype);
}

void draw_norms(const Case& c, LlamaInputs& in) {
  const Problem& p = c.problem;
  const auto weight = [&](LayerStream stream, int64_t channels, at::ScalarType dtype) {
    return (draw_float(stream, c, {channels}, 0.125) + 1).to(dtype);
  };
  if (c.llama->norm != InputNorm::none)
    in.norm = weight(LayerStream::norm, p.hq * p.d, dtype_of_part(c, c.llama->norm == InputNorm::fp32));
  if (!c.llama->qk_norm) return;
  in.q_norm = weight(LayerStream::q_norm, p.hq * p.d, torch_dtype(p.dtype));
  in.k_norm = weight(LayerStream::k_norm, p.hkv * p.d, torch_dtype(p.dtype));
}

void draw_adapters(const Case& c, LlamaInputs& in) {
  const Problem& p = c.problem;
  const int64_t rank = c.llama->lora, e = p.hq * p.d;
  if (rank == 0) return;
  const auto matrix = [&](LayerStream stream, int64_t out, int64_t channels, double factor) {
    const Tensor drawn = draw_float(stream, c, {out, channels}, factor / std::sqrt(static_cast<double>(channels)));
    return drawn.to(dtype_of_part(c, c.llama->lora_dtype == PartDtype::fp32));
  };
  in.lora_qa = matrix(LayerStream::lora_qa, rank, e, 1);
  in.lora_qb = matrix(LayerStream::lora_qb, p.hq * p.d, rank, 0.5);
  in.lora_va = matrix(LayerStream::lora_va, rank, e, 1);
  in.lora_vb = matrix(LayerStream::lora_vb, p.hkv * p.d, rank, 0.5);
}

/// Weights become int8; their scales are in the dtype.
void quantise(LlamaInputs& in) {
  for (const auto& [weight, scale] : {std::pair{&in.wq, &in.wq_scale}, std::pair{&in.wk, &in.wk_scale},
                                      std::pair{&in.wv, &in.wv_scale}, std::pair{&in.wo, &in.wo_scale}}) {
    const Tensor w = weight->to(at::kFloat);
    *scale = (w.abs().amax(1) / 127).to(weight->scalar_type());
    *weight = (w / scale->to(at::kFloat).unsqueeze(1)).round().clamp(-127, 127).to(at::kChar);
  }
}

/// The same numbers, stored as [b, E, s].
Tensor transposed(const Tensor& x) {
  return x.transpose(1, 2).contiguous().transpose(1, 2);
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

/// transformers' prepare_inputs_for_generation(), of the last `s` tokens of a mask [b, past + s].
Tensor ids_from_mask(const Tensor& mask, int64_t s) {
  const Tensor ids = (mask.to(at::kLong).cumsum(1) - 1).masked_fill(mask.logical_not(), 1);
  return ids.narrow(1, mask.size(1) - s, s);
}

/// Of each token in its row, or, packed, in its sample.
Tensor position_ids_of(const Case& c, const std::vector<int64_t>& samples, const Tensor& mask) {
  const Problem& p = c.problem;
  if (c.llama->positions == PositionIds::none) return {};
  if (c.llama->positions == PositionIds::from_mask) return ids_from_mask(mask, p.lq) + c.llama->shift;
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
  if (layer.int8) quantise(in);
  draw_norms(c, in);
  draw_adapters(c, in);
  if (layer.past > 0) {
    in.past_k = draw(LayerStream::past_k, c, {b, p.hkv, layer.past, p.d}, 1);
    in.past_v = draw(LayerStream::past_v, c, {b, p.hkv, layer.past, p.d}, 1);
  }
  if (layer.mask) in.mask = mask_of(c);
  in.position_ids = position_ids_of(c, samples, in.mask);
  if (!samples.empty()) in.cu_seqlens = prefix_sums(samples, "packed");
  in.dout = draw(LayerStream::dout, c, {b, p.lq, e}, 1);
  if (!layer.pad_dout) in.dout = in.dout * in.real_queries().unsqueeze(-1);
  if (c.strides == Strides::transposed)
    for (Tensor* t : {&in.hidden, &in.dout}) *t = transposed(*t);
  return in;
}

bool has_gradient(const Tensor& input) {
  return input.defined() && input.is_floating_point();
}

}  // namespace attnbench
