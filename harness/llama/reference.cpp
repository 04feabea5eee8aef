#include "harness/llama/reference.hpp"

#include <cmath>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd.h>

#include "harness/attention/error_model.hpp"
#include "harness/attention/parallel.hpp"
#include "harness/attention/torch_dtype.hpp"
#include "harness/llama/spacing.hpp"
#include "harness/llama/storing.hpp"

namespace attnbench {
namespace {

using namespace storing;
using at::Tensor;
using torch::autograd::variable_list;

constexpr double kLargestFp16 = 65504, kInfiniteFp16 = 65520;  ///< what rounds to infinity

/// weight x / rms(x) over the last axis: the quotient is stored as x is, the product as `out`.
Tensor normalised(const Tensor& x, const Tensor& weight, const Storing& in, const Storing& out) {
  const Tensor given_x = given(x, in);
  const Tensor unit = stored(given_x * (given_x.square().mean(-1, true) + kNormEpsilon).rsqrt(), in);
  return stored(unit * given(weight.expand_as(unit), out), out);
}

/// What the tensors of a case are in, once the script has cast what it casts.
struct LayerDtypes {
  Dtype norm, adapters;
  Dtype states;     ///< as the projections get them
  Dtype projected;  ///< of q and v
  Dtype promoted;   ///< of q and v as attention gets them, and of what follows from them

  LayerDtypes(const Case& c, const Semantics& semantics) {
    const LlamaLayer& layer = *c.llama;
    const Dtype own = c.problem.dtype;
    const bool wide_norm = layer.norm == InputNorm::fp32 && layer.cast == CastParts::none;
    const bool wide_adapters = layer.lora_dtype == PartDtype::fp32 && layer.cast != CastParts::norms_and_adapters;
    norm = states = wide_norm ? Dtype::fp32 : own;
    adapters = wide_adapters ? Dtype::fp32 : own;
    projected = wide_adapters ? Dtype::fp32 : states;
    promoted = semantics.casts_back ? own : projected;
  }
};

/// In which a layer returns a tensor: a gradient as what it is of.
Dtype dtype_of(const std::string& name, const Case& c, const Semantics& semantics) {
  const LayerDtypes dtypes(c, semantics);
  if (name == "dnorm") return dtypes.norm;
  if (name.starts_with("dlora")) return dtypes.adapters;
  if (name == "cache_k") return dtypes.states;
  if (name == "cache_v") return dtypes.projected;
  return name.starts_with('d') ? c.problem.dtype : dtypes.promoted;
}

/// The layer, once.
class Layer {
 public:
  Layer(const Case& c, const LlamaInputs& inputs, const Semantics& semantics, const Profile& profile, const Storing& own)
      : c_(c),
        in_(inputs),
        semantics_(semantics),
        profile_(profile),
        dtypes_(c, semantics),
        own_(own),
        states_{own.arithmetic, dtypes_.states, own.generator},
        adapters_{own.arithmetic, dtypes_.adapters, own.generator},
        projected_{own.arithmetic, dtypes_.projected, own.generator},
        promoted_{own.arithmetic, dtypes_.promoted, own.generator} {}

  LlamaOutputs compute(Pass pass);

 private:
  struct Attention {
    Tensor P, log_sum;  ///< [b, hq, s, past + s]; of the exponentials, [b, hq, s, 1]
  };
  void be_leaves(Pass pass);
  Tensor as_cast(const Tensor& part, Dtype dtype) const;
  Tensor adapted(const Tensor& base, const Tensor& states, const Tensor& a, const Tensor& b) const;
  Tensor heads(const Tensor& x, const Tensor& norm, const Storing& in) const;
  Tensor turned(const Tensor& x, const Storing& in) const;
  Tensor visible() const;
  Tensor places(const Tensor& mask) const;
  Tensor clamped(const Tensor& scores, const Tensor& products, const Tensor& sees) const;
  Tensor keys_in_call() const;
  Tensor tied(const Tensor& scores) const;
  Tensor stored_means(const Tensor& P) const;
  Attention probabilities(const Tensor& q, const Tensor& k) const;
  Tensor stored_output(const Attention& a, const Tensor& v) const;

  const Case& c_;
  const LlamaInputs& in_;
  const Semantics& semantics_;
  const Profile& profile_;
  const LayerDtypes dtypes_;
  const Storing own_, states_, adapters_, projected_, promoted_;
  LlamaInputs x_;  ///< what has a gradient, and the weights: float64
};

/// A norm or an adapter that the script has cast, in float64.
Tensor Layer::as_cast(const Tensor& part, Dtype dtype) const {
  const bool is_cast = c_.llama->cast != CastParts::none && dtype == c_.problem.dtype;
  return is_cast ? part.to(torch_dtype(dtype)) : part;
}

void Layer::be_leaves(Pass pass) {
  const bool differentiable = pass == Pass::backward;
  for (const Differentiated& d : kDifferentiated) {
    const std::string name = d.gradient_name;
    const bool is_part = name == "dnorm" || name.starts_with("dlora");
    const Tensor& t = in_.*d.input;
    if (has_gradient(t))
      x_.*d.input =
          (is_part ? as_cast(t, dtype_of(name, c_, semantics_)) : t).detach().to(at::kDouble).requires_grad_(differentiable);
  }
  if (!c_.llama->int8) return;
  // What the dtype of the states makes of int8 times scale.
  const auto dequantised = [](const Tensor& w, const Tensor& scale, Dtype dtype) {
    return (w.to(at::kDouble) * scale.to(at::kDouble).unsqueeze(1)).to(torch_dtype(dtype)).to(at::kDouble);
  };
  x_.wq = dequantised(in_.wq, in_.wq_scale, dtypes_.states);
  x_.wk = dequantised(in_.wk, in_.wk_scale, dtypes_.states);
  x_.wv = dequantised(in_.wv, in_.wv_scale, dtypes_.states);
  x_.wo = dequantised(in_.wo, in_.wo_scale, dtypes_.promoted);
}

/// base [b, s, out] with what the adapter of a and b makes of the states.
Tensor Layer::adapted(const Tensor& base, const Tensor& states, const Tensor& a, const Tensor& b) const {
  if (!a.defined()) return base;
  const Tensor low = stored(cast(states, states_, adapters_).matmul(a.t()), adapters_);
  const Tensor added = stored(low.matmul(b.t()), adapters_) * kLoraScale;
  return stored(given(base, states_) + given(added, adapters_), projected_);
}

/// [b, s, E] -> [b, heads, s, d], normalised before if there is a weight for that.
Tensor Layer::heads(const Tensor& x, const Tensor& norm, const Storing& in) const {
  const Tensor all = norm.defined() ? normalised(x, norm, in, in) : x;
  return all.unflatten(-1, {-1, c_.problem.d}).transpose(1, 2);
}

/// RoPE; angles are float32, cos and sin are what the dtype makes of them.
Tensor Layer::turned(const Tensor& x, const Storing& in) const {
  if (c_.llama->positions == PositionIds::none) return x;
  const int64_t d = c_.problem.d;
  const Tensor frequencies = at::pow(10000.0, at::arange(0, d, 2, at::kFloat) / static_cast<double>(d)).reciprocal();
  const Tensor angles = (in_.position_ids.to(at::kFloat).unsqueeze(-1) * frequencies).unsqueeze(1);  // [b or 1, 1, s, d / 2]
  const at::ScalarType type = torch_dtype(in.dtype);
  const Tensor cos = angles.cos().to(type).to(at::kDouble), sin = angles.sin().to(type).to(at::kDouble);
  const Tensor low = x.narrow(-1, 0, d / 2), high = x.narrow(-1, d / 2, d / 2);
  const Tensor new_low = stored(low * cos, in) - stored(high * sin, in);
  const Tensor new_high = stored(high * cos, in) + stored(low * sin, in);
  return stored(at::cat({new_low, new_high}, -1), in);
}

/// Rank of each position among the real ones of its row, [b, 1, positions].
Tensor Layer::places(const Tensor& mask) const {
  return mask.to(at::kLong).cumsum(-1) - 1;
}

/// Which key each query sees, bool [b, s, past + s].
Tensor Layer::visible() const {
  const Problem& p = c_.problem;
  const int64_t s = p.lq, keys = p.lk;
  const bool hides = in_.mask.defined() && semantics_.key_mask;
  const Tensor real = hides ? in_.mask : at::ones({in_.hidden.size(0), keys}, at::kBool);
  Tensor sees = real.unsqueeze(1).expand({real.size(0), s, keys});
  const Tensor j = places(real).unsqueeze(1);                    // rank of each key
  Tensor i = places(real).narrow(1, keys - s, s).unsqueeze(-1);  // rank of each query's own key
  if (in_.cu_seqlens.defined()) {
    const Tensor sample = at::arange(keys, at::kLong).unsqueeze(-1).ge(in_.cu_seqlens.to(at::kLong)).sum(-1);
    sees = sees & sample.unsqueeze(1).eq(sample.unsqueeze(0)).unsqueeze(0);
  }
  if (semantics_.top_left) i = (at::arange(s, at::kLong) % (s / c_.llama->chunks)).view({1, s, 1});
  if (p.mask == Mask::causal && semantics_.causal) sees = sees & j.le(i);
  if (p.window && p.window->left >= 0) sees = sees & (i - j).le(p.window->left);
  return sees;
}

/// Scores as fp16 has them in the softmax where nothing is padded: a hidden key's are less by the largest number, and all are
/// clamped there, infinite ones too.
Tensor Layer::clamped(const Tensor& scores, const Tensor& products, const Tensor& sees) const {
  const Tensor masked = at::where(sees, scores, stored(scores - kLargestFp16, promoted_));
  return at::where(products.le(-kInfiniteFp16), -kLargestFp16, masked.clamp_min(-kLargestFp16));
}

/// How many keys the call of each query has, [s, 1]: those of later calls do not exist yet.
Tensor Layer::keys_in_call() const {
  const int64_t count = c_.problem.lq / c_.llama->chunks;
  const Tensor i = at::arange(c_.problem.lq, at::kLong).unsqueeze(-1);
  return i - i % count + count + c_.llama->past;
}

/// Scores of queries that see no key, as adding the dtype's lowest number and a clamp there leave them: the same for all keys of
/// the call. Where the clamp's two sides are equal, half of the gradient goes on to the product; a key that padding and causality
/// hide both is below, and has none.
Tensor Layer::tied(const Tensor& scores) const {
  const Tensor j = at::arange(c_.problem.lk, at::kLong), i = at::arange(c_.problem.lq, at::kLong).unsqueeze(-1);
  const Tensor hidden_twice = in_.mask.logical_not().unsqueeze(1).unsqueeze(1) & j.gt(i + c_.llama->past);
  const Tensor half = at::where(hidden_twice, 0.0, scores / 2);
  return at::where(j.lt(keys_in_call()), half - half.detach(), -INFINITY);
}

/// P of queries that see no key: equal numbers round alike.
Tensor Layer::stored_means(const Tensor& P) const {
  const Tensor mean = keys_in_call().to(at::kDouble).reciprocal();
  return given(P, promoted_) + at::where(P > 0, stored(mean, promoted_) - mean, 0.0);
}

/// [b, hq, s, past + s]; of queries that see no key 0, or the same for all keys of their call.
Layer::Attention Layer::probabilities(const Tensor& q, const Tensor& k) const {
  const double scale = 1 / std::sqrt(static_cast<double>(c_.problem.d));
  const Tensor products = q.matmul(k.mT());
  Tensor scores = profile_.rounds_scores ? stored(stored(products, promoted_) * scale, promoted_) : products * scale;
  if (profile_.rounds_ds && !profile_.rounds_scores) scores = given(scores, promoted_);
  Tensor sees = visible().unsqueeze(1);
  if (semantics_.fp16_overflow) {
    scores = clamped(scores, products, sees);
    sees = at::ones_like(sees);
  }
  const Tensor none = sees.any(-1, true).logical_not();
  const bool uniform = semantics_.uniform_rows && in_.mask.defined();
  const Tensor unseen = at::where(none, uniform ? tied(scores) : scores, -INFINITY);
  const Tensor masked = at::where(sees, scores, unseen);
  Tensor P = softmax(masked, promoted_);
  P = at::where(uniform ? sees | none : sees, P, 0.0);
  if (semantics_.fp16_overflow) P = P * at::where(products.ge(kInfiniteFp16).any(-1, true), NAN, 1.0);  // infinity - infinity
  if (profile_.p != Profile::Probabilities::not_rounded)
    P = uniform ? at::where(none, stored_means(P), stored(P, promoted_)) : stored(P, promoted_);
  return {P, at::logsumexp(masked, -1, true)};
}

/// P v as it is stored. Where D = dO . O takes the stored O, an error of O comes to dS = P (dP - D) as -P (dO . error). That is
/// the gradient of -error log_sum, whose value is taken off again. (Where the dP of the few keys that are seen happen to be
/// small, that is many times the rounding of D itself.)
Tensor Layer::stored_output(const Attention& a, const Tensor& v) const {
  const Tensor o = a.P.matmul(v), kept = stored(o, promoted_);
  if (profile_.d != Profile::RowSum::from_output) return kept;
  return kept - (kept - o).detach() * (a.log_sum - a.log_sum.detach());
}

LlamaOutputs Layer::compute(Pass pass) {
  be_leaves(pass);
  const Tensor states = x_.norm.defined() ? normalised(x_.hidden, x_.norm, own_, states_) : given(x_.hidden, own_);
  const auto projected = [&](const Tensor& w) { return stored(given(states, states_).matmul(w.t()), states_); };
  const Tensor all_q = adapted(projected(x_.wq), states, x_.lora_qa, x_.lora_qb);
  const Tensor q = turned(heads(all_q, x_.q_norm, projected_), projected_);
  Tensor k = turned(heads(projected(x_.wk), x_.k_norm, states_), states_);
  const Tensor all_v = adapted(projected(x_.wv), states, x_.lora_va, x_.lora_vb);
  Tensor v = heads(all_v, {}, projected_);
  if (in_.past_k.defined()) {
    k = at::cat({in_.past_k.to(at::kDouble), k}, 2);
    v = at::cat({in_.past_v.to(at::kDouble), v}, 2);
  }
  const int64_t group = c_.problem.group();
  const auto called = [&](const Tensor& x, const Storing& in) {
    return semantics_.casts_back && in.dtype != promoted_.dtype ? cast(x, in, promoted_) : x;
  };
  const Tensor key_heads = called(given(k, states_), states_), value_heads = called(given(v, projected_), projected_);
  const Attention attention = probabilities(called(q, projected_), key_heads.repeat_interleave(group, 1));
  const Tensor o = stored_output(attention, value_heads.repeat_interleave(group, 1));
  LlamaOutputs outputs;
  const Tensor out = stored(o.transpose(1, 2).flatten(2).matmul(x_.wo.t()), promoted_);
  if (pass == Pass::backward) {
    const Tensor dout = in_.dout.to(at::kDouble) * judged_queries(c_, in_, semantics_).unsqueeze(-1);
    variable_list leaves;
    for (const Differentiated& d : kDifferentiated)
      if (has_gradient(in_.*d.input)) leaves.push_back(x_.*d.input);
    const variable_list gradients = torch::autograd::grad({out}, leaves, {dout});
    size_t next = 0;
    for (const Differentiated& d : kDifferentiated)
      if (has_gradient(in_.*d.input)) outputs.*d.gradient = gradients[next++];
  }
  outputs.out = out.detach();
  if (c_.llama->cache) {
    outputs.cache_k = k.detach();
    outputs.cache_v = v.detach();
  }
  if (c_.llama->weights) outputs.weights = attention.P.detach();
  return outputs;
}

using Rows = std::map<std::string, Tensor>;

Rows rows_of(const LlamaOutputs& outputs, const Tensor& queries) {
  Rows rows;
  for (const auto& [name, output] : by_name(outputs))
    if (output.defined()) rows[name] = judged_rows(name, output, queries);
  return rows;
}

/// squares: of each element, their mean over the draws. Gradients of weights are too many to draw their own rounding: it is
/// added, for the share of each chunk and for each sum of two.
Tensor variance_of(const std::string& name, const Tensor& squares, const Case& c, const Tensor& x, Dtype dtype) {
  const Tensor row = at::where(squares != 0, squares.mean(-1, true), 0.0);
  const Tensor variance = (squares * kNoiseDraws + row * kRowWeight) / kVarianceFreedom;
  if (!name.starts_with('d') || name == "dhidden") return variance;
  return variance + spacing(dtype, x).square() * (static_cast<double>(2 * c.llama->chunks - 1) / 12);
}

/// Of errors [draws, rows, 1, channels], z [draws, elements], float32: 0 of what has no error or is no number.
Tensor z_of(const Tensor& errors, const Tensor& variance) {
  return at::where(variance > 0, errors / variance.sqrt().to(at::kFloat), 0.0).flatten(1).to(at::kFloat);
}

/// signal: x / sigma, [elements].
double gain_deviation(const Tensor& z, const Tensor& signal) {
  const double all = signal.square().sum().item<double>();
  return all > 0 ? std::sqrt((z.mv(signal) / all).square().mean().item<double>()) : 0;
}

double independent_errors(const Tensor& z) {
  const Tensor products = z.mm(z.t()), own = products.diagonal();
  const double of_two = (products.square().sum() - own.square().sum()).item<double>() / (kNoiseDraws * (kNoiseDraws - 1));
  return of_two > 0 ? std::pow(own.mean().item<double>(), 2) / of_two : 0;
}

/// errors: of each draw, float32.
LayerTensor layer_tensor(const std::string& name, const Case& c, Dtype dtype, const Tensor& x, const Tensor& ordinary,
                         const std::vector<Rows>& errors) {
  std::vector<Tensor> of_draws;
  Tensor squares = at::zeros_like(x);
  for (const Rows& draw : errors) {
    of_draws.push_back(draw.at(name));
    squares += draw.at(name).to(at::kDouble).square() / kNoiseDraws;
  }
  const Tensor variance = variance_of(name, squares, c, x, dtype);
  const Tensor z = z_of(at::stack(of_draws), variance), signal = z_of(x.unsqueeze(0), variance).squeeze(0);
  const double freedom = name.ends_with("norm") ? static_cast<double>(x.size(2)) : 1;
  return {.expected = {x, variance, Tensor(), at::ones({x.size(0), 1}, at::kDouble) * freedom},
          .dtype = dtype,
          .ordinary = ordinary,
          .gain_deviation = gain_deviation(z, signal),
          .samples = independent_errors(z)};
}

}  // namespace

std::map<std::string, Tensor> by_name(const LlamaOutputs& o) {
  std::map<std::string, Tensor> named = {{"out", o.out}, {"cache_k", o.cache_k}, {"cache_v", o.cache_v}, {"weights", o.weights}};
  for (const Differentiated& d : kDifferentiated) named[d.gradient_name] = o.*d.gradient;
  return named;
}

Tensor judged_queries(const Case& c, const LlamaInputs& inputs, const Semantics& semantics) {
  const Tensor real = inputs.real_queries().to(at::kCPU);
  return semantics.uniform_rows && LayerDtypes(c, semantics).promoted == c.problem.dtype ? at::ones_like(real) : real;
}

Tensor judged_rows(const std::string& name, const Tensor& output, const Tensor& queries) {
  const Tensor host = output.detach().to(at::kCPU).to(at::kDouble);
  if (name == "cache_k" || name == "cache_v") return host.transpose(1, 2).reshape({-1, 1, host.size(-1)});
  if (name.starts_with("dlora") && name.ends_with('a')) return host.t().unsqueeze(1).contiguous();
  const Tensor rows = host.reshape({-1, 1, host.size(-1)});
  const Tensor judged = at::nonzero(queries.flatten()).flatten();
  if (name == "out") return rows.index_select(0, judged);
  if (name != "weights") return rows;
  return host.transpose(1, 2).flatten(0, 1).index_select(0, judged).reshape({-1, 1, host.size(-1)});
}

LlamaOutputs ordinary_layer(const Case& c, const LlamaInputs& inputs, const Semantics& semantics, const Profile& profile,
                            Pass pass) {
  LlamaOutputs o = Layer(c, inputs, semantics, profile, {Arithmetic::rounded, c.problem.dtype, {}}).compute(pass);
  const auto returned = [&](const char* name, Tensor& t) {
    if (t.defined()) t = t.to(torch_dtype(dtype_of(name, c, semantics)));
  };
  returned("out", o.out);
  returned("cache_k", o.cache_k);
  returned("cache_v", o.cache_v);
  returned("weights", o.weights);
  for (const Differentiated& d : kDifferentiated) returned(d.gradient_name, o.*d.gradient);
  return o;
}

LayerReference make_layer_reference(const Case& c, const LlamaInputs& inputs, const Semantics& semantics, const Profile& profile,
                                    Pass pass) {
  const Tensor queries = judged_queries(c, inputs, semantics);
  const auto rows = [&](Arithmetic arithmetic, uint64_t seed) {
    const Storing storing{arithmetic, c.problem.dtype, at::make_generator<at::CPUGeneratorImpl>(seed)};
    return rows_of(Layer(c, inputs, semantics, profile, storing).compute(pass), queries);
  };
  const Rows exact = rows(Arithmetic::exact, 0), ordinary = rows_of(ordinary_layer(c, inputs, semantics, profile, pass), queries);
  std::vector<Rows> errors(kNoiseDraws);
  for_each_piece(at::kCPU, kNoiseDraws, [&](int64_t draw) {
    errors[draw] = rows(Arithmetic::noisy, static_cast<uint64_t>(draw + 1));
    for (auto& [name, noisy] : errors[draw]) noisy = (noisy - exact.at(name)).to(at::kFloat);
  });
  LayerReference reference;
  for (const auto& [name, x] : exact)
    reference[name] = layer_tensor(name, c, dtype_of(name, c, semantics), x, ordinary.at(name), errors);
  return reference;
}

}  // namespace attnbench
