#include "harness/worker/z_gate.hpp"

#include <stdexcept>
#include <string>

#include <ATen/TensorOperators.h>

#include "harness/attention/tokens.hpp"

namespace attnbench {
namespace {

bool within(const at::Tensor& got, const Expected& expected, double limit) {
  return ((got - expected.value).abs() <= expected.variance.sqrt() * limit).all().item<bool>();
}

}  // namespace

bool within_z_limit(const Yardstick& y, std::string_view tensor, const Outputs& outputs) {
  if (tensor == "lse") {
    const TokenShape s = y.shape(kOutput);
    return within(tokens_of(outputs.lse, y.rows(kOutput), s.heads, 1), y.reference().lse,
                  lse_limit(s.elements(), y.limits("lse")));
  }
  for (const JudgedTensor* t : {&kOutput, &kQueryGradient, &kKeyGradient, &kValueGradient}) {
    if (tensor != t->name) continue;
    const bool given = y.rounding().conditional() && (t == &kQueryGradient || t == &kKeyGradient);
    const std::string gated_as = std::string(t->name) + (given ? "_given_o" : "");
    const double limit = z_limit(y.shape(*t).elements(), y.scale(*t, gated_as));
    if (!given) return within(y.tokens(*t, outputs), y.expected(*t), limit);
    const ConditionalGradients gradients = y.given(outputs.o);
    return within(y.tokens(*t, outputs), t == &kQueryGradient ? gradients.dq : gradients.dk, limit);
  }
  throw std::invalid_argument("within_z_limit: no such tensor: " + std::string(tensor));
}

}  // namespace attnbench
