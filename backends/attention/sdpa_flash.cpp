// sdpa_flash: the flash kernel behind scaled_dot_product_attention, forward and backward called directly (no dispatcher):
// on a CPU LibTorch's own, here; on a GPU FlashAttention-2, in sdpa_flash_cuda.cpp.
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <torch/version.h>

#include "backends/attention/pinned.hpp"
#include "backends/attention/sdpa.hpp"

namespace attnbench {
namespace {

class SdpaFlashCpu : public PinnedBackend {
 public:
  SdpaFlashCpu() {
    declaration_.name = "sdpa_flash";
    declaration_.version = TORCH_VERSION;
    declaration_.implementation = "pytorch_flash";
    declaration_.profile = sdpa_flash_profile();
    declaration_.conventions = sdpa_conventions();
    declaration_.capabilities = broad_capabilities({"cpu", "cuda"});
    declaration_.capabilities.dv_differs = false;  // "Q/K/V should have the same head size"
    declaration_.capabilities.returns_lse = true;
  }

  DenseForward forward(const DenseCall& call, double scale) const override {
    auto [o, lse] =
        at::_scaled_dot_product_flash_attention_for_cpu(call.q, call.k, call.v, 0.0, call.is_causal, optional_mask(call), scale);
    return {o, lse, {}};
  }

  DenseGradients backward(const DenseCall& call, const DenseForward& result, double scale) const override {
    auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        call.dout, call.q, call.k, call.v, result.o, result.lse, 0.0, call.is_causal, optional_mask(call), scale);
    return {dq, dk, dv};
  }

 protected:
  int64_t bytes(const std::vector<DenseCall>& calls, const Case&, const Inputs& inputs, Pass pass) const override {
    return sdpa_flash_bytes(calls, inputs, pass);
  }
};

}  // namespace

std::unique_ptr<Backend> make_sdpa_flash_cuda();

std::unique_ptr<Backend> make_sdpa_flash(const Device& device) {
  if (device.kind == "cuda") return make_sdpa_flash_cuda();
  return std::make_unique<SdpaFlashCpu>();
}

}  // namespace attnbench
