#include "backends/llama/attention_call.hpp"

#include <algorithm>
#include <memory>
#include <numeric>
#include <stdexcept>

#include <ATen/ops/empty_like.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>

#include "harness/worker/llama_backend.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// A call made ready; `inputs` and `run` refer to each other, so that it stays where it is.
struct Ready {
  Case c;
  Inputs inputs;
  Run run;
};

std::vector<int64_t> up_to(int64_t rows) {
  std::vector<int64_t> numbers(static_cast<size_t>(rows));
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kBFloat16:
      return Dtype::bf16;
    case at::kHalf:
      return Dtype::fp16;
    case at::kFloat:
      return Dtype::fp32;
    default:
      throw std::invalid_argument("attention of " + std::string(c10::toString(t.scalar_type())) +
                                  ": expected bf16, fp16 or fp32");
  }
}

Case case_of(const AttentionCall& call) {
  Case c;
  Problem& p = c.problem;
  if (call.k.scalar_type() != call.q.scalar_type() || call.v.scalar_type() != call.q.scalar_type())
    throw std::invalid_argument(fmt::format("attention of {} queries, {} keys and {} values: expected one dtype",
                                            c10::toString(call.q.scalar_type()), c10::toString(call.k.scalar_type()),
                                            c10::toString(call.v.scalar_type())));
  p.b = static_cast<int64_t>(call.q_lengths.size());
  p.hq = call.q.size(1);
  p.hkv = call.k.size(1);
  p.d = p.dv = call.q.size(2);
  p.lens = call.q_lengths;
  p.klens = call.k_lengths;
  p.dtype = dtype_of(call.q);
  p.mask = call.causal ? Mask::causal : Mask::none;
  p.align = call.align;
  p.window = call.window;
  c.metadata.timed = false;
  return c;
}

/// A view of rows of channels side by side as it is, where the backend takes that; else a copy without gaps.
Tensor laid_out_for(const Backend& attention, const Tensor& x) {
  const std::vector<Strides>& taken = attention.declaration().capabilities.strides;
  const bool is_taken = x.stride(2) == 1 && std::ranges::find(taken, Strides::transposed) != taken.end();
  return is_taken ? x.detach() : x.detach().contiguous();
}

std::unique_ptr<Ready> make_ready(const Backend& attention, const AttentionCall& call, Pass pass) {
  auto ready = std::make_unique<Ready>();
  ready->c = case_of(call);
  Inputs& in = ready->inputs;
  in.q = laid_out_for(attention, call.q);
  in.k = laid_out_for(attention, call.k);
  in.v = laid_out_for(attention, call.v);
  in.dout = at::empty_like(in.q, at::MemoryFormat::Contiguous);
  in.lengths.q = call.q_lengths;
  in.lengths.k = call.k_lengths;
  in.cu_q = prefix_sums(call.q_lengths, "query").to(in.q.device());
  in.cu_k = prefix_sums(call.k_lengths, "key").to(in.q.device());
  in.q_rows = up_to(in.q.size(0));
  in.k_rows = up_to(in.k.size(0));
  in.scale = ready->c.problem.softmax_scale();
  const at::Device where = in.q.device();
  // Whether the device's own SM is enough was asked when the case was planned.
  const Device device{where.is_cuda() ? "cuda" : "cpu", where.is_cuda() ? where.index() : 0,
                      attention.declaration().capabilities.min_sm, ""};
  if (const auto why = attention.why_not(ready->c, pass, device)) throw AttentionLacks(*why);
  ready->run = attention.prepare(ready->c, in, pass);
  return ready;
}

struct Attend : torch::autograd::Function<Attend> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                        int64_t attention, int64_t call) {
    const auto& backend = *reinterpret_cast<const Backend*>(attention);
    AttentionCall given = *reinterpret_cast<const AttentionCall*>(call);
    const bool differentiable = q.requires_grad() || k.requires_grad() || v.requires_grad();
    given.q = q;
    given.k = k;
    given.v = v;
    const std::shared_ptr<Ready> ready = make_ready(backend, given, differentiable ? Pass::backward : Pass::forward);
    ctx->saved_data["ready"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(ready));
    return ready->run.windows.back().forward().o.detach();  // what `ready` keeps must not lead back to this node: a cycle
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& gradients) {
    const auto holder = c10::static_intrusive_pointer_cast<Holder>(ctx->saved_data["ready"].toCapsule());
    Ready& ready = *holder->ready;
    ready.inputs.dout.copy_(gradients[0]);  // windows read what the inputs hold then
    const Outputs out = ready.run.windows.back().backward();
    return {out.dq, out.dk, out.dv, Tensor(), Tensor()};
  }

 private:
  struct Holder : torch::CustomClassHolder {
    explicit Holder(std::shared_ptr<Ready> held) : ready(std::move(held)) {}
    std::shared_ptr<Ready> ready;
  };
};

}  // namespace

Tensor attend(const Backend& attention, const AttentionCall& call) {
  return Attend::apply(call.q, call.k, call.v, reinterpret_cast<int64_t>(&attention), reinterpret_cast<int64_t>(&call));
}

}  // namespace attnbench
