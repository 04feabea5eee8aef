// sdpa_cudnn: cuDNN's kernel behind scaled_dot_product_attention on a GPU, forward and backward called directly (no
// dispatcher). Its causal flag is top-left; every other mask is a bias.
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention_backward.h>

#include "backends/attention/cudnn.hpp"
#include "backends/attention/fused_cuda.hpp"
#include "backends/attention/pinned.hpp"
#include "backends/attention/sdpa.hpp"

namespace attnbench {
namespace {

class SdpaCudnn : public PinnedBackend {
 public:
  explicit SdpaCudnn(const Device& device) {
    declaration_.name = "sdpa_cudnn";
    declaration_.version = cudnn_version(device);
    declaration_.implementation = "pytorch_cudnn";
    declaration_.profile = cudnn_profile();
    declaration_.conventions = sdpa_conventions();
    declaration_.capabilities = fused_cuda_capabilities();
    declaration_.capabilities.max_head_dim = cudnn_max_head_dim(device);
    declaration_.capabilities.dv_differs = true;
  }

  DenseForward forward(const DenseCall& call, double scale) const override {
    const auto result = at::_scaled_dot_product_cudnn_attention(call.q, call.k, call.v, optional_mask(call),
                                                                /*compute_log_sumexp=*/true, 0.0, call.is_causal, false, scale);
    const at::Tensor& lse = std::get<1>(result);  // [b, hq, lq, 1]
    return {std::get<0>(result), lse.dim() == 4 ? lse.squeeze(3) : lse, {lse, std::get<6>(result), std::get<7>(result)}};
  }

  DenseGradients backward(const DenseCall& call, const DenseForward& result, double scale) const override {
    const at::Tensor dense;  // no cu_seqlens
    auto [dq, dk, dv] = at::_scaled_dot_product_cudnn_attention_backward(
        call.dout, call.q, call.k, call.v, result.o, result.saved[0], result.saved[1], result.saved[2], call.mask, dense, dense,
        call.q.size(2), call.k.size(2), 0.0, call.is_causal, scale);
    return {dq, dk, dv};
  }
};

}  // namespace

std::unique_ptr<Backend> make_sdpa_cudnn(const Device& device) {
  return std::make_unique<SdpaCudnn>(device);
}

}  // namespace attnbench
