#include "backends/attention/flash_varlen_cuda.hpp"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "backends/attention/flash_varlen_arguments.hpp"

namespace attnbench {
namespace {

class FlashVarlenCuda : public VarlenOperation {
 public:
  FlashVarlenCuda(const Case& c, const Inputs& inputs, std::optional<flash_varlen::Defect> planted)
      : shape_(flash_varlen_shape(c, inputs)), tail_(c.problem.tail), planted_(planted) {
    launch_.max_q = inputs.lengths.max_q();
    launch_.max_k = inputs.lengths.max_k();
    launch_.total_q = inputs.lengths.total_q();
  }

  Outputs forward(const PackedInputs& in) override {
    const Outputs out = flash_varlen_results(shape_, in, Pass::forward, tail_);
    const c10::DeviceGuard guard(in.q.device());
    const flash_varlen::Forward args = forward_arguments(shape_, in, out);
    planted_ ? flash_varlen::forward_cuda_planted(*planted_, args, launch_on_current_stream())
             : flash_varlen::forward_cuda(args, launch_on_current_stream());
    return out;
  }

  Outputs backward(const PackedInputs& in, const Outputs& result) override {
    const Outputs out = flash_varlen_results(shape_, in, Pass::backward, tail_);
    const c10::DeviceGuard guard(in.q.device());
    const at::Tensor workspace = at::empty({workspace_bytes(Pass::backward)}, in.q.options().dtype(at::kByte));
    const flash_varlen::Backward args = backward_arguments(shape_, in, result, out);
    void* const memory = workspace.mutable_data_ptr();
    planted_ ? flash_varlen::backward_cuda_planted(*planted_, args, launch_on_current_stream(), memory)
             : flash_varlen::backward_cuda(args, launch_on_current_stream(), memory);
    return out;
  }

  int64_t workspace_bytes(Pass pass) const override {
    return pass == Pass::forward ? 0 : static_cast<int64_t>(flash_varlen::backward_cuda_workspace_bytes(shape_, launch_));
  }

 private:
  flash_varlen::CudaLaunch launch_on_current_stream() const {
    flash_varlen::CudaLaunch launch = launch_;
    launch.stream = c10::cuda::getCurrentCUDAStream().stream();
    return launch;
  }

  flash_varlen::Shape shape_;
  int64_t tail_;  ///< rows behind the last sequence
  flash_varlen::CudaLaunch launch_;
  std::optional<flash_varlen::Defect> planted_;
};

}  // namespace

std::string why_no_cuda_kernels() {
  return "";
}

std::unique_ptr<VarlenOperation> make_flash_varlen_cuda(const Case& c, const Inputs& inputs,
                                                        std::optional<flash_varlen::Defect> planted) {
  return std::make_unique<FlashVarlenCuda>(c, inputs, planted);
}

}  // namespace attnbench
