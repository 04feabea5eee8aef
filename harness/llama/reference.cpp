#include "harness/llama/reference.hpp"

#include <cmath>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "harness/attention/error_model.hpp"
#include "harness/attention/torch_dtype.hpp"

namespace attnbench {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

enum class Arithmetic : int64_t { exact, noisy, rounded };

/// Draws of the noise, and how much those of its row weigh beside the mean square of an element.
constexpr int kDraws = 16;
constexpr double kRowWeight = 8;

/// In fp32 what errs is not the storing but the sums of float32, of a few hundred terms.
constexpr double kFp32Sums = 8;

/// Spacing of the dtype at each element: the exponent's bits alone are the power of two at or below |x|.
Tensor spacing(Dtype dtype, const Tensor& x) {
  const Tensor power = x.contiguous().view(at::kLong).bitwise_and(int64_t(0x7ff) << 52).view(at::kDouble);
  return power.mul(ulp(dtype, 1)).clamp_min_(ulp(dtype, 0));
}

/// How one pass through the layer stores.
struct Storing {
  Arithmetic arithmetic = Arithmetic::exact;
  Dtype dtype = Dtype::bf16;
  at::Generator generator;  ///< of the noise

  Tensor operator()(const Tensor& x) const {
    if (arithmetic == Arithmetic::rounded) return x.to(torch_dtype(dtype)).to(at::kDouble);
    if (arithmetic == Arithmetic::exact) return x;
    const double width = dtype == Dtype::fp32 ? kFp32Sums : 1;
    const Tensor noise = at::empty_like(x).uniform_(-0.5, 0.5, generator).mul_(spacing(dtype, x)).mul_(width);
    return x + at::where(x != 0, noise, 0.0);
  }
};

/// Stores a tensor on the way forward, and its gradient on the way back; either may be left alone.
struct Store : torch::autograd::Function<Store> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, int64_t storing, bool values, bool gradients) {
    ctx->saved_data["storing"] = storing;
    ctx->saved_data["gradients"] = gradients;
    return values ? (*reinterpret_cast<const Storing*>(storing))(x) : x.clone();
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto* storing = reinterpret_cast<const Storing*>(ctx->saved_data["storing"].toInt());
    return {ctx->saved_data["gradients"].toBool() ? (*storing)(gradients[0]) : gradients[0], Tensor(), Tensor(), Tensor()};
  }
};

/// Softmax, whose backward dS = P (dP - D) has a D of its own error: of a D from the rounded O as much as the dtype rounds, else
/// as float32 does. Where one key is seen dP = D, and that error is all that there is of dS.
struct Softmax : torch::autograd::Function<Softmax> {
  static Tensor forward(AutogradContext* ctx, const Tensor& scores, int64_t storing, double error) {
    const Tensor P = at::softmax(scores, -1);
    ctx->save_for_backward({P});
    ctx->saved_data["storing"] = storing;
    ctx->saved_data["error"] = error;
    return P;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const Tensor P = ctx->get_saved_variables()[0], dP = gradients[0];
    const auto* storing = reinterpret_cast<const Storing*>(ctx->saved_data["storing"].toInt());
    Tensor D = (P * dP).sum(-1, true);
    if (storing->arithmetic == Arithmetic::noisy) {
      const Tensor size = (P * dP.square()).sum(-1, true).sqrt() * ctx->saved_data["error"].toDouble();
      D = D + at::empty_like(D).uniform_(-1, 1, storing->generator) * size;
    }
    return {P * (dP - D), Tensor(), Tensor()};
  }
};

/// The layer, once.
class Layer {
 public:
  Layer(const Case& c, const LlamaInputs& inputs, const Semantics& semantics, const Profile& profile, Storing storing)
      : c_(c), in_(inputs), semantics_(semantics), profile_(profile), storing_(std::move(storing)) {}

  LlamaOutputs compute(Pass pass);

 private:
  Tensor stored(const Tensor& x) const { return Store::apply(x, address(), true, true); }
  Tensor given(const Tensor& x) const { return Store::apply(x, address(), false, true); }
  int64_t address() const { return reinterpret_cast<int64_t>(&storing_); }

  Tensor heads(const Tensor& x, const Tensor& w) const;
  Tensor turned(const Tensor& x) const;
  Tensor visible() const;
  Tensor places(const Tensor& mask) const;
  Tensor probabilities(const Tensor& q, const Tensor& k) const;

  const Case& c_;
  const LlamaInputs& in_;
  const Semantics& semantics_;
  const Profile& profile_;
  const Storing storing_;
};

/// [b, s, E] -> [b, heads, s, d]
Tensor Layer::heads(const Tensor& x, const Tensor& w) const {
  return stored(given(x).matmul(w.t())).unflatten(-1, {-1, c_.problem.d}).transpose(1, 2);
}

/// RoPE; angles are float32, cos and sin are what the dtype makes of them.
Tensor Layer::turned(const Tensor& x) const {
  const int64_t d = c_.problem.d;
  const Tensor frequencies = at::pow(10000.0, at::arange(0, d, 2, at::kFloat) / static_cast<double>(d)).reciprocal();
  const Tensor angles = (in_.position_ids.to(at::kFloat).unsqueeze(-1) * frequencies).unsqueeze(1);  // [b or 1, 1, s, d / 2]
  const at::ScalarType type = torch_dtype(c_.problem.dtype);
  const Tensor cos = angles.cos().to(type).to(at::kDouble), sin = angles.sin().to(type).to(at::kDouble);
  const Tensor low = x.narrow(-1, 0, d / 2), high = x.narrow(-1, d / 2, d / 2);
  const Tensor new_low = stored(low * cos) - stored(high * sin), new_high = stored(high * cos) + stored(low * sin);
  return stored(at::cat({new_low, new_high}, -1));
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

/// [b, hq, s, past + s]; of queries that see no key 0, or the same for all keys.
Tensor Layer::probabilities(const Tensor& q, const Tensor& k) const {
  const double scale = 1 / std::sqrt(static_cast<double>(c_.problem.d));
  Tensor scores = q.matmul(k.mT());
  scores = profile_.rounds_scores ? stored(stored(scores) * scale) : scores * scale;
  if (profile_.rounds_ds && !profile_.rounds_scores) scores = given(scores);
  const Tensor sees = visible().unsqueeze(1);
  const Tensor none = sees.any(-1, true).logical_not();
  const bool from_output = profile_.d == Profile::RowSum::from_output && c_.problem.dtype != Dtype::fp32;
  const double error = from_output ? ulp(c_.problem.dtype, 1) / 2 : kFp32Sums * ulp(Dtype::fp32, 1) / 2;
  Tensor P = Softmax::apply(at::where(sees | none, scores, -INFINITY), address(), error);
  const Tensor alike = at::ones({}, at::kDouble) / static_cast<double>(c_.problem.lk);
  P = at::where(none, semantics_.uniform_rows ? alike : alike * 0, at::where(sees, P, 0.0));
  return profile_.p == Profile::Probabilities::not_rounded ? P : stored(P);
}

LlamaOutputs Layer::compute(Pass pass) {
  const auto leaf = [&](const Tensor& t) { return t.detach().to(at::kDouble).requires_grad_(pass == Pass::backward); };
  const std::vector<Tensor> x = {leaf(in_.hidden), leaf(in_.wq), leaf(in_.wk), leaf(in_.wv), leaf(in_.wo)};
  const Tensor states = given(x[0]), q = turned(heads(states, x[1]));
  Tensor k = turned(heads(states, x[2])), v = heads(states, x[3]);
  if (in_.past_k.defined()) {
    k = at::cat({in_.past_k.to(at::kDouble), k}, 2);
    v = at::cat({in_.past_v.to(at::kDouble), v}, 2);
  }
  const int64_t group = c_.problem.group();
  const Tensor P = probabilities(q, given(k).repeat_interleave(group, 1));
  const Tensor o = stored(P.matmul(given(v).repeat_interleave(group, 1)));
  LlamaOutputs outputs;
  const Tensor out = stored(o.transpose(1, 2).flatten(2).matmul(x[4].t()));
  if (pass == Pass::backward) {
    const Tensor dout = in_.dout.to(at::kDouble) * in_.real_queries().unsqueeze(-1);
    const variable_list gradients = torch::autograd::grad({out}, {x[0], x[1], x[2], x[3], x[4]}, {dout});
    outputs.dhidden = gradients[0];
    outputs.dwq = gradients[1];
    outputs.dwk = gradients[2];
    outputs.dwv = gradients[3];
    outputs.dwo = gradients[4];
  }
  outputs.out = out.detach();
  if (c_.llama->cache) {
    outputs.cache_k = k.detach();
    outputs.cache_v = v.detach();
  }
  if (c_.llama->weights) outputs.weights = P.detach();
  return outputs;
}

using Rows = std::map<std::string, Tensor>;

Rows rows_of(const LlamaOutputs& outputs, const LlamaInputs& inputs) {
  Rows rows;
  for (const auto& [name, output] : by_name(outputs))
    if (output.defined()) rows[name] = judged_rows(name, output, inputs);
  return rows;
}

/// An element's own mean square says little after a few draws, that of its row nothing of the element: between them. Gradients of
/// weights are too many to draw their own rounding: it is added, for the share of each chunk and for each sum of two.
Tensor variance_of(const std::string& name, const Tensor& squares, const Case& c, const Tensor& x) {
  const Tensor row = at::where(squares != 0, squares.mean(-1, true), 0.0);
  const Tensor variance = (squares * kDraws + row * kRowWeight) / (kDraws + kRowWeight);
  if (!name.starts_with("dw")) return variance;
  return variance + spacing(c.problem.dtype, x).square() * (static_cast<double>(2 * c.llama->chunks - 1) / 12);
}

/// The gain that the draws have in the mean square: errors of P or K come to whole heads alike.
double gain_deviation(const std::vector<Rows>& draws, const std::string& name, const Tensor& x, const Tensor& variance) {
  const Tensor weight = at::where(variance > 0, x / variance, 0.0);
  const double all = (weight * x).sum().item<double>();
  double squares = 0;
  for (const Rows& draw : draws) squares += std::pow(((draw.at(name) - x) * weight).sum().item<double>() / all, 2);
  return all > 0 ? std::sqrt(squares / static_cast<double>(draws.size())) : 0;
}

}  // namespace

std::map<std::string, Tensor> by_name(const LlamaOutputs& o) {
  return {{"out", o.out}, {"cache_k", o.cache_k}, {"cache_v", o.cache_v}, {"weights", o.weights}, {"dhidden", o.dhidden},
          {"dwq", o.dwq}, {"dwk", o.dwk},         {"dwv", o.dwv},         {"dwo", o.dwo}};
}

Tensor judged_rows(const std::string& name, const Tensor& output, const LlamaInputs& inputs) {
  const Tensor host = output.detach().to(at::kCPU).to(at::kDouble);
  if (name == "cache_k" || name == "cache_v") return host.transpose(1, 2).reshape({-1, 1, host.size(-1)});
  const Tensor rows = host.reshape({-1, 1, host.size(-1)});
  const Tensor real = at::nonzero(inputs.real_queries().to(at::kCPU).flatten()).flatten();
  if (name == "out") return rows.index_select(0, real);
  if (name != "weights") return rows;
  return host.transpose(1, 2).flatten(0, 1).index_select(0, real).reshape({-1, 1, host.size(-1)});
}

LlamaOutputs ordinary_layer(const Case& c, const LlamaInputs& inputs, const Semantics& semantics, const Profile& profile,
                            Pass pass) {
  LlamaOutputs o = Layer(c, inputs, semantics, profile, {Arithmetic::rounded, c.problem.dtype, {}}).compute(pass);
  for (Tensor* t : {&o.out, &o.cache_k, &o.cache_v, &o.weights, &o.dhidden, &o.dwq, &o.dwk, &o.dwv, &o.dwo})
    if (t->defined()) *t = t->to(torch_dtype(c.problem.dtype));
  return o;
}

LayerReference make_layer_reference(const Case& c, const LlamaInputs& inputs, const Semantics& semantics, const Profile& profile,
                                    Pass pass) {
  const auto rows = [&](Arithmetic arithmetic, uint64_t seed) {
    const Storing storing{arithmetic, c.problem.dtype, at::make_generator<at::CPUGeneratorImpl>(seed)};
    return rows_of(Layer(c, inputs, semantics, profile, storing).compute(pass), inputs);
  };
  const Rows exact = rows(Arithmetic::exact, 0), ordinary = rows_of(ordinary_layer(c, inputs, semantics, profile, pass), inputs);
  std::vector<Rows> draws;
  for (int draw = 1; draw <= kDraws; ++draw) draws.push_back(rows(Arithmetic::noisy, static_cast<uint64_t>(draw)));
  LayerReference reference;
  for (const auto& [name, x] : exact) {
    Tensor squares = at::zeros_like(x);
    for (const Rows& draw : draws) squares += (draw.at(name) - x).square() / kDraws;
    const Tensor variance = variance_of(name, squares, c, x);
    reference[name] = {{x, variance, Tensor(), at::ones({x.size(0), 1}, at::kDouble)},
                       ordinary.at(name),
                       gain_deviation(draws, name, x, variance)};
  }
  return reference;
}

}  // namespace attnbench
