// sdpa_flash on a GPU: LibTorch's FlashAttention-2 over dense tensors. It takes no mask; its causal flag is bottom-right.
#include <limits>
#include <stdexcept>

#include <ATen/ops/_scaled_dot_product_flash_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_backward.h>
#include <torch/version.h>

#include "backends/attention/fused_cuda.hpp"
#include "backends/attention/pinned.hpp"
#include "backends/attention/sdpa.hpp"

namespace attnbench {
namespace {

class SdpaFlashCuda : public PinnedBackend {
 public:
  SdpaFlashCuda() {
    declaration_.name = "sdpa_flash";
    declaration_.version = TORCH_VERSION;
    declaration_.implementation = "pytorch_flash";
    declaration_.profile = sdpa_flash_profile();
    declaration_.conventions = sdpa_conventions();
    declaration_.conventions.lse_empty = Conventions::LseEmpty::plus_infinity;  // so that its backward gets P = exp(S - inf) = 0
    declaration_.capabilities = fused_cuda_capabilities();
    declaration_.capabilities.devices = {"cpu", "cuda"};
    declaration_.capabilities.layouts = {Layout::packed};
    declaration_.capabilities.aligns = {Align::bottom_right};
  }

  DenseForward forward(const DenseCall& call, double scale) const override {
    if (call.mask.defined()) throw std::invalid_argument("sdpa_flash: on a GPU the operation takes no mask");
    const auto result = at::_scaled_dot_product_flash_attention(call.q, call.k, call.v, 0.0, call.is_causal, false, scale);
    return {std::get<0>(result), std::get<1>(result), {std::get<6>(result), std::get<7>(result)}};
  }

  DenseGradients backward(const DenseCall& call, const DenseForward& result, double scale) const override {
    const at::Tensor dense;  // no cu_seqlens
    auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_backward(call.dout, call.q, call.k, call.v, result.o, result.lse,
                                                                         dense, dense, call.q.size(2), call.k.size(2), 0.0,
                                                                         call.is_causal, result.saved[0], result.saved[1], scale);
    return {dq, dk, dv};
  }

 protected:
  std::vector<DenseCall> calls(const Case& c, const Inputs& inputs) const override {
    return dense_calls(c, inputs, Triangle::bottom_right_flag, -std::numeric_limits<double>::infinity());
  }
};

}  // namespace

std::unique_ptr<Backend> make_sdpa_flash_cuda() {
  return std::make_unique<SdpaFlashCuda>();
}

}  // namespace attnbench
