#include "harness/llama/storing.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "harness/attention/error_model.hpp"
#include "harness/attention/torch_dtype.hpp"
#include "harness/llama/spacing.hpp"

namespace attnbench::storing {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// In fp32 what errs is not the storing but the sums of float32, of a few hundred terms.
constexpr double kFp32Sums = 8;

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

struct Softmax : torch::autograd::Function<Softmax> {
  static Tensor forward(AutogradContext* ctx, const Tensor& scores, int64_t storing) {
    const Tensor P = at::softmax(scores, -1);
    ctx->save_for_backward({P});
    ctx->saved_data["storing"] = storing;
    return P;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const Tensor P = ctx->get_saved_variables()[0], dP = gradients[0];
    const auto* storing = reinterpret_cast<const Storing*>(ctx->saved_data["storing"].toInt());
    Tensor D = (P * dP).sum(-1, true);
    if (storing->arithmetic == Arithmetic::noisy) {
      const Tensor size = (P * dP.square()).sum(-1, true).sqrt() * (kFp32Sums * ulp(Dtype::fp32, 1) / 2);
      D = D + at::empty_like(D).uniform_(-1, 1, storing->generator) * size;
    }
    return {P * (dP - D), Tensor()};
  }
};

int64_t address(const Storing& in) {
  return reinterpret_cast<int64_t>(&in);
}

}  // namespace

Tensor Storing::operator()(const Tensor& x) const {
  if (arithmetic == Arithmetic::rounded) return x.to(torch_dtype(dtype)).to(at::kDouble);
  if (arithmetic == Arithmetic::exact) return x;
  const double width = dtype == Dtype::fp32 ? kFp32Sums : 1;
  const Tensor noise = at::empty_like(x).uniform_(-0.5, 0.5, generator).mul_(spacing(dtype, x)).mul_(width);
  return x + at::where(x != 0, noise, 0.0);
}

Tensor stored(const Tensor& x, const Storing& in) {
  return Store::apply(x, address(in), true, true);
}
Tensor given(const Tensor& x, const Storing& in) {
  return Store::apply(x, address(in), false, true);
}

Tensor cast(const Tensor& x, const Storing& from, const Storing& to) {
  const bool narrows = from.dtype == Dtype::fp32 && to.dtype != Dtype::fp32;
  return Store::apply(given(x, from), address(to), narrows, true);
}

Tensor softmax(const Tensor& scores, const Storing& in) {
  return Softmax::apply(scores, address(in));
}

}  // namespace attnbench::storing
