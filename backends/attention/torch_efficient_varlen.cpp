// torch_efficient_varlen: LibTorch's memory-efficient kernel over packed tensors.
#include <ATen/ops/_efficient_attention_backward.h>
#include <ATen/ops/_efficient_attention_forward.h>
#include <ATen/ops/zeros.h>
#include <torch/version.h>

#include "backends/attention/fused_cuda.hpp"
#include "backends/attention/sdpa.hpp"
#include "backends/attention/torch_varlen.hpp"

namespace attnbench {
namespace {

/// Storage rows of every query where each sequence has max_q of them.
std::vector<int64_t> rows_by_sequence(const SequenceLengths& lengths) {
  std::vector<int64_t> rows;
  for (size_t n = 0; n < lengths.q.size(); n++) {
    for (int64_t i = 0; i < lengths.q[n]; i++) rows.push_back(static_cast<int64_t>(n) * lengths.max_q() + i);
  }
  return rows;
}

class TorchEfficient : public TorchVarlenOperation {
 public:
  TorchEfficient(const Case& c, const Inputs& inputs)
      : TorchVarlenOperation(c, inputs),
        queries_(rows_by_sequence(inputs.lengths), static_cast<int64_t>(inputs.lengths.q.size()), inputs.lengths.max_q(),
                 inputs.q.device()) {}

  Outputs forward(const PackedInputs& in) override {
    const auto result = at::_efficient_attention_forward(in.q.unsqueeze(0), in.k.unsqueeze(0), in.v.unsqueeze(0), std::nullopt,
                                                         cu_q(), cu_k(), max_q(), max_k(), 0.0, mask_type(),
                                                         /*compute_log_sumexp=*/true, scale());
    lse_ = std::get<1>(result);
    seed_ = std::get<2>(result);
    offset_ = std::get<3>(result);
    Outputs out;
    out.o = std::get<0>(result).squeeze(0);
    out.lse = with_tail(queries_.unpad(lse_.transpose(1, 2)));
    return out;
  }

  Outputs backward(const PackedInputs& in, const Outputs& result) override {
    const auto gradients = at::_efficient_attention_backward(
        in.dout.unsqueeze(0), in.q.unsqueeze(0), in.k.unsqueeze(0), in.v.unsqueeze(0), std::nullopt, result.o.unsqueeze(0),
        cu_q(), cu_k(), max_q(), max_k(), lse_, 0.0, seed_, offset_, mask_type(), /*bias_requires_grad=*/false, scale());
    Outputs out;
    out.dq = std::get<0>(gradients).squeeze(0);
    out.dk = std::get<1>(gradients).squeeze(0);
    out.dv = std::get<2>(gradients).squeeze(0);
    return out;
  }

 private:
  /// The kernel's LSE has no rows behind the last sequence: 0 there.
  at::Tensor with_tail(const at::Tensor& lse) const {
    if (problem().tail == 0) return lse;
    const at::Tensor longer = at::zeros({lse.size(0) + problem().tail, lse.size(1)}, lse.options());
    longer.narrow(0, 0, lse.size(0)).copy_(lse);
    return longer;
  }

  /// sdp::CustomMaskType
  int64_t mask_type() const {
    if (!is_causal()) return 0;
    return problem().align == Align::top_left ? 1 : 2;
  }

  Padding queries_;
  at::Tensor lse_;            ///< [b, hq, max_q rounded up to a multiple of 32]
  at::Tensor seed_, offset_;  ///< of the last forward, unused without dropout
};

class TorchEfficientVarlen : public VarlenBackend {
 public:
  TorchEfficientVarlen() {
    declaration_.name = "torch_efficient_varlen";
    declaration_.version = TORCH_VERSION;
    declaration_.implementation = "pytorch_efficient";
    declaration_.profile = efficient_profile();
    declaration_.conventions.lse_empty = Conventions::LseEmpty::zero;  // the kernel's epilogue says log(1)
    declaration_.capabilities = fused_cuda_capabilities();
    declaration_.capabilities.tail = true;
    declaration_.capabilities.dtypes = {Dtype::bf16, Dtype::fp16, Dtype::fp32};
    declaration_.capabilities.max_head_dim = 65536;
    declaration_.capabilities.dv_differs = true;
    declaration_.capabilities.gqa = false;
  }

 protected:
  std::unique_ptr<VarlenOperation> operation(const Case& c, const Inputs& inputs) const override {
    return std::make_unique<TorchEfficient>(c, inputs);
  }
  bool refuses_nothing_to_do() const override { return true; }
};

}  // namespace

std::unique_ptr<Backend> make_torch_efficient_varlen(const Device&) {
  return std::make_unique<TorchEfficientVarlen>();
}

}  // namespace attnbench
