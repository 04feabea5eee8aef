// sdpa_efficient: the memory-efficient kernel behind scaled_dot_product_attention on a GPU, forward and backward called
// directly (no dispatcher). Its causal flag is top-left; every other mask is a bias.
#include <array>

#include <ATen/ops/_scaled_dot_product_efficient_attention.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention_backward.h>
#include <ATen/ops/zeros.h>
#include <torch/version.h>

#include "backends/attention/fused_cuda.hpp"
#include "backends/attention/pinned.hpp"
#include "backends/attention/sdpa.hpp"

namespace attnbench {
namespace {

/// The kernel reads rows of the bias 16 bytes at a time: their pitch is a multiple of that, as LibTorch's own preprocessing
/// makes it. Heads share one bias.
at::Tensor as_bias(const at::Tensor& mask, const at::Tensor& q) {
  constexpr int64_t kElements = 16;
  const int64_t keys = mask.size(3), pitch = (keys + kElements - 1) / kElements * kElements;
  const at::Tensor aligned = at::zeros({mask.size(0), 1, mask.size(2), pitch}, mask.options()).narrow(3, 0, keys).copy_(mask);
  return aligned.expand({q.size(0), q.size(1), mask.size(2), keys});
}

class SdpaEfficient : public PinnedBackend {
 public:
  SdpaEfficient() {
    declaration_.name = "sdpa_efficient";
    declaration_.version = TORCH_VERSION;
    declaration_.implementation = "pytorch_efficient";
    declaration_.profile = efficient_profile();
    declaration_.conventions = sdpa_conventions();
    declaration_.conventions.lse_empty = Conventions::LseEmpty::zero;  // the kernel's epilogue says log(1)
    declaration_.capabilities = fused_cuda_capabilities();
    declaration_.capabilities.dtypes = {Dtype::bf16, Dtype::fp16, Dtype::fp32};
    declaration_.capabilities.max_head_dim = 65536;
    declaration_.capabilities.dv_differs = true;
    declaration_.capabilities.gqa = false;
  }

  DenseForward forward(const DenseCall& call, double scale) const override {
    auto [o, lse, seed, offset] = at::_scaled_dot_product_efficient_attention(
        call.q, call.k, call.v, optional_mask(call), /*compute_log_sumexp=*/true, 0.0, call.is_causal, scale);
    return {o, lse.narrow(2, 0, call.q.size(2)), {lse, seed, offset}};  // its rows are padded to multiples of 32
  }

  DenseGradients backward(const DenseCall& call, const DenseForward& result, double scale) const override {
    const auto gradients = at::_scaled_dot_product_efficient_attention_backward(
        call.dout, call.q, call.k, call.v, call.mask, result.o, result.saved[0], result.saved[1], result.saved[2], 0.0,
        std::array<bool, 4>{true, true, true, false}, call.is_causal, scale);
    return {std::get<0>(gradients), std::get<1>(gradients), std::get<2>(gradients)};
  }

 protected:
  std::vector<DenseCall> calls(const Case& c, const Inputs& inputs) const override {
    std::vector<DenseCall> calls = PinnedBackend::calls(c, inputs);
    for (DenseCall& call : calls) {
      if (call.mask.defined()) call.mask = as_bias(call.mask, call.q);
    }
    return calls;
  }
};

}  // namespace

std::unique_ptr<Backend> make_sdpa_efficient(const Device&) {
  return std::make_unique<SdpaEfficient>();
}

}  // namespace attnbench
