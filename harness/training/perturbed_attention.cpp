#include "harness/training/perturbed_attention.hpp"

#include <algorithm>
#include <cmath>
#include <memory>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/custom_function.h>

#include "harness/training/padding.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// Bits of float32's mantissa that the dtype has not; of fp32 those that sums of a few hundred terms lose.
int64_t lost_bits(Dtype dtype) {
  return dtype == Dtype::bf16 ? 16 : dtype == Dtype::fp16 ? 13 : 3;
}

class RandomRounding {
 public:
  RandomRounding(Dtype dtype, uint64_t draw) : bits_(lost_bits(dtype)), draw_(static_cast<int64_t>(draw)) {}

  /// Float32 x, up or down with the probability that makes the mean over the draws x: bits below the kept ones are added at
  /// random, then cut. What is added depends on the draw and the mantissa alone, so that equal numbers are rounded alike, as they
  /// are to the nearest: of probabilities that are all 1/n the errors add up.
  Tensor operator()(const Tensor& x) const {
    const Tensor number = x.contiguous().view(at::kInt);
    const Tensor sum = number + mixed(number.bitwise_and(kMantissa).to(at::kLong)).to(at::kInt);
    return sum.bitwise_and(-(int64_t{1} << bits_)).view(at::kFloat);
  }

 private:
  static constexpr int64_t kMantissa = (int64_t{1} << 23) - 1;

  /// `bits_` bits of a hash: multiply and shift, twice.
  Tensor mixed(Tensor mantissa) const {
    constexpr int64_t kFirst = 0x2545F4914F6CDD1D, kSecond = 0x369DEA0F31A53F85;
    for (const int64_t factor : {kFirst, kSecond}) {
      mantissa = (mantissa + draw_) * factor;
      mantissa = mantissa.bitwise_xor(mantissa.bitwise_right_shift(32));
    }
    return mantissa.bitwise_right_shift(16).bitwise_and((int64_t{1} << bits_) - 1);
  }

  int64_t bits_, draw_;
};

/// Rounds the gradient on the way back, and, if `values` says so, on the way forward too.
struct Round : torch::autograd::Function<Round> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, int64_t rounding, bool values) {
    ctx->saved_data["rounding"] = rounding;
    return values ? (*reinterpret_cast<const RandomRounding*>(rounding))(x) : x.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& gradients) {
    return {(*reinterpret_cast<const RandomRounding*>(ctx->saved_data["rounding"].toInt()))(gradients[0]), Tensor(), Tensor()};
  }
};

}  // namespace

TrainedAttention perturbed_attention(Dtype dtype, AlsoStored also, uint64_t draw) {
  const auto rounding = std::make_shared<RandomRounding>(dtype, draw);
  return [rounding, also](const Tensor& q, const Tensor& k, const Tensor& v, const std::vector<int64_t>& lengths) {
    const auto address = reinterpret_cast<int64_t>(rounding.get());
    const int64_t s = *std::max_element(lengths.begin(), lengths.end()), b = static_cast<int64_t>(lengths.size());
    const Tensor places = places_of_tokens(lengths, s, q.device());
    const auto stored = [&](const Tensor& x, bool values) { return Round::apply(x, address, values); };
    const auto padded = [&](const Tensor& x) {
      const Tensor heads = padded_rows(stored(x.to(at::kFloat), false), places, b, s).transpose(1, 2);  // [b, heads, s, d]
      const int64_t group = q.size(1) / heads.size(1);
      const Tensor all = heads.repeat_interleave(group, 1);
      return also.gqa_partials && group > 1 ? stored(all, false) : all;
    };
    const double scale = 1 / std::sqrt(static_cast<double>(q.size(2)));
    const Tensor products = padded(q).matmul(padded(k).mT());
    const Tensor scores = also.scores ? stored(stored(products, true) * scale, true) : stored(products * scale, false);
    const Tensor i = at::arange(s, q.options().dtype(at::kLong).requires_grad(false));
    const Tensor P = at::softmax(at::where(i.unsqueeze(0) <= i.unsqueeze(1), scores, -INFINITY), -1);
    const Tensor o = stored(P, true).matmul(padded(v));
    return stored(rows_of_tokens(o.transpose(1, 2), places), true).to(q.scalar_type());
  };
}

}  // namespace attnbench
