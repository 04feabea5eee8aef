// How the passes through a layer store what they compute: exactly, rounded to a dtype, or with the noise of a rounding. Each
// stands for the way forward and, for gradients, for the way back.
#pragma once

#include <cstdint>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include "harness/run/case.hpp"

namespace attnbench::storing {

enum class Arithmetic : int64_t { exact, noisy, rounded };

/// How one pass through the layer stores.
struct Storing {
  Arithmetic arithmetic = Arithmetic::exact;
  Dtype dtype = Dtype::bf16;
  at::Generator generator;  ///< of the noise

  at::Tensor operator()(const at::Tensor& x) const;
};

/// x as `in` has it; its gradient too.
at::Tensor stored(const at::Tensor& x, const Storing& in);
/// x itself; its gradient as `in` has it.
at::Tensor given(const at::Tensor& x, const Storing& in);
/// x, which is stored in `from`, as `to` has it.
at::Tensor cast(const at::Tensor& x, const Storing& from, const Storing& to);
/// Softmax over the last axis. Its backward dS = P (dP - D) has, where `in` is noisy, a D with the error of float32 sums. Where
/// one key is seen dP = D, and that is all that there is of dS.
at::Tensor softmax(const at::Tensor& scores, const Storing& in);

}  // namespace attnbench::storing
