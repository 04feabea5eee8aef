// torch_cudnn_varlen: cuDNN's kernel over packed tensors, through LibTorch, which builds its graph anew at every call (inside
// the timed window). Its causal mask is top-left.
//
// Forward only: at::_cudnn_attention_backward hands query.size(2) and key.size(2) to cuDNN as the longest lengths, which for
// packed tensors [tokens, heads, channels] is the head dim; rows beyond it would get no gradient
// (aten/src/ATen/native/transformers/cuda/attention_backward.cu).
#include <stdexcept>

#include <ATen/ops/_cudnn_attention_forward.h>

#include "backends/attention/cudnn.hpp"
#include "backends/attention/fused_cuda.hpp"
#include "backends/attention/sdpa.hpp"
#include "backends/attention/torch_varlen.hpp"

namespace attnbench {
namespace {

class TorchCudnn : public TorchVarlenOperation {
 public:
  using TorchVarlenOperation::TorchVarlenOperation;

  Outputs forward(const PackedInputs& in) override {
    const auto result = at::_cudnn_attention_forward(in.q, in.k, in.v, std::nullopt, cu_q(), cu_k(), max_q(), max_k(),
                                                     /*compute_log_sumexp=*/true, 0.0, is_causal(), false, scale());
    Outputs out;
    out.o = std::get<0>(result);
    out.lse = std::get<1>(result).squeeze(2);
    return out;
  }

  Outputs backward(const PackedInputs&, const Outputs&) override { throw std::logic_error("torch_cudnn_varlen has no backward"); }
};

class TorchCudnnVarlen : public VarlenBackend {
 public:
  explicit TorchCudnnVarlen(const Device& device) {
    declaration_.name = "torch_cudnn_varlen";
    declaration_.version = cudnn_version(device);
    declaration_.implementation = "pytorch_cudnn";
    declaration_.profile = cudnn_profile();
    declaration_.capabilities = fused_cuda_capabilities();
    declaration_.capabilities.tail = true;
    declaration_.capabilities.min_sm = 90;  // LibTorch's dispatcher gives it packed tensors on SM 9.0 and 10.x
    declaration_.capabilities.max_sm = 109;
    declaration_.capabilities.max_head_dim = cudnn_max_head_dim(device);
    declaration_.capabilities.dv_differs = true;
    declaration_.capabilities.passes = {Pass::forward};
    declaration_.capabilities.aligns = {Align::top_left};
  }

 protected:
  std::unique_ptr<VarlenOperation> operation(const Case& c, const Inputs& inputs) const override {
    return std::make_unique<TorchCudnn>(c, inputs);
  }
  bool refuses_nothing_to_do() const override { return true; }
};

}  // namespace

std::unique_ptr<Backend> make_torch_cudnn_varlen(const Device& device) {
  return std::make_unique<TorchCudnnVarlen>(device);
}

}  // namespace attnbench
