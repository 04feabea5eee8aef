#include "backends/attention/eager_dropout.hpp"

#include <algorithm>

#include <ATen/Context.h>
#include <ATen/ops/bernoulli.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

namespace attnbench {

EagerDropout::EagerDropout(double p, uint64_t seed, c10::Device device)
    : p_(p), seed_(seed), generator_(at::globalContext().defaultGenerator(device).clone()) {}

void EagerDropout::begin() {
  generator_.set_current_seed(seed_ ^ seed_ >> 32);  // LibTorch's CPU generator reads the lower half alone
  kept_.clear();
}

at::Tensor EagerDropout::factors(const DenseCall& call) {
  const at::Tensor shares = at::full({call.q.size(0), call.q.size(1), call.q.size(2), call.k.size(2)}, 1 - p_,
                                     call.q.options().dtype(at::kFloat).requires_grad(false));
  const at::Tensor ones = at::bernoulli(shares, generator_);
  kept_.push_back(ones.to(at::kBool));
  return ones.mul(1 / (1 - p_));
}

at::Tensor EagerDropout::kept(const std::vector<DenseCall>& calls, Layout layout) const {
  int64_t longest = 0;
  for (const DenseCall& call : calls) longest = std::max(longest, call.k.size(2));
  std::vector<at::Tensor> parts;
  auto next = kept_.begin();
  for (const DenseCall& call : calls) {
    const int64_t keys = call.k.size(2);
    parts.push_back(at::zeros({call.q.size(0), call.q.size(1), call.q.size(2), longest},
                              call.q.options().dtype(at::kBool).requires_grad(false)));
    if (!call.is_empty()) parts.back().narrow(3, 0, keys).copy_(*next++);
  }
  return join(parts, layout);
}

}  // namespace attnbench
