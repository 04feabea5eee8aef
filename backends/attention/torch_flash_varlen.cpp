// torch_flash_varlen: LibTorch's FlashAttention-2 over packed tensors. Its masks are bottom-right.
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <torch/version.h>

#include "backends/attention/fused_cuda.hpp"
#include "backends/attention/sdpa.hpp"
#include "backends/attention/torch_varlen.hpp"

namespace attnbench {
namespace {

class TorchFlash : public TorchVarlenOperation {
 public:
  using TorchVarlenOperation::TorchVarlenOperation;

  Outputs forward(const PackedInputs& in) override {
    auto [o, lse, rng_state, unused, debug_mask] = at::_flash_attention_forward(
        in.q, in.k, in.v, cu_q(), cu_k(), max_q(), max_k(), 0.0, is_causal(), false, scale(), window().left, window().right);
    rng_state_ = rng_state;
    unused_ = unused;
    Outputs out;
    out.o = o;
    out.lse = lse.transpose(0, 1);  // it is [hq, total_q]
    return out;
  }

  Outputs backward(const PackedInputs& in, const Outputs& result) override {
    auto [dq, dk, dv] =
        at::_flash_attention_backward(in.dout, in.q, in.k, in.v, result.o, result.lse.transpose(0, 1), cu_q(), cu_k(), max_q(),
                                      max_k(), 0.0, is_causal(), rng_state_, unused_, scale(), window().left, window().right);
    Outputs out;
    out.dq = dq;
    out.dk = dk;
    out.dv = dv;
    return out;
  }

 private:
  /// A causal mask overrules the right bound.
  SlidingWindow window() const { return problem().window.value_or(SlidingWindow{-1, -1}); }

  at::Tensor rng_state_, unused_;  ///< of the last forward
};

class TorchFlashVarlen : public VarlenBackend {
 public:
  TorchFlashVarlen() {
    declaration_.name = "torch_flash_varlen";
    declaration_.version = TORCH_VERSION;
    declaration_.implementation = "pytorch_flash";
    declaration_.profile = sdpa_flash_profile();
    declaration_.conventions.lse_empty = Conventions::LseEmpty::plus_infinity;  // so that its backward gets P = exp(S - inf) = 0
    declaration_.capabilities = fused_cuda_capabilities();
    declaration_.capabilities.tail = true;
    declaration_.capabilities.aligns = {Align::bottom_right};
    declaration_.capabilities.window = true;
  }

 protected:
  std::unique_ptr<VarlenOperation> operation(const Case& c, const Inputs& inputs) const override {
    return std::make_unique<TorchFlash>(c, inputs);
  }
  bool refuses_nothing_to_do() const override { return true; }
};

}  // namespace

std::unique_ptr<Backend> make_torch_flash_varlen(const Device&) {
  return std::make_unique<TorchFlashVarlen>();
}

}  // namespace attnbench
