// sdpa_auto: scaled_dot_product_attention as a training loop calls it: inputs require gradients in both passes, as that has a
// say in what LibTorch's dispatcher picks and makes the kernel return its LSE, which the other backends do too. What it
// picked is recorded, and the run is judged by that kernel's profile. The backward is autograd's.
#include <limits>
#include <set>
#include <stdexcept>
#include <string>

#include <ATen/SDPBackend.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/version.h>

#include "backends/attention/autograd.hpp"
#include "backends/attention/cudnn.hpp"
#include "backends/attention/fused_cuda.hpp"
#include "backends/attention/pinned.hpp"
#include "backends/attention/sdpa.hpp"

namespace attnbench {
namespace {

/// The dispatcher's own answer for one call, asked with the arguments of the call.
std::string kernel_of(const DenseCall& call, double scale) {
  const auto argument = [](const at::Tensor& x) { return x.detach().requires_grad_(true); };
  const int64_t choice = at::_fused_sdp_choice(argument(call.q), argument(call.k), argument(call.v), optional_mask(call), 0.0,
                                               call.is_causal, scale, call.q.size(1) != call.k.size(1));
  switch (static_cast<at::SDPBackend>(choice)) {
    case at::SDPBackend::flash_attention:
      return "sdpa_flash";
    case at::SDPBackend::efficient_attention:
      return "sdpa_efficient";
    case at::SDPBackend::cudnn_attention:
      return "sdpa_cudnn";
    case at::SDPBackend::math:
      return "sdpa_math";
    default:
      throw std::runtime_error("sdpa_auto: LibTorch's dispatcher picked kernel " + std::to_string(choice) +
                               ", which is none of flash, efficient, cudnn and math");
  }
}

/// Those of all calls that are not empty. Calls of one case differ in lengths only, and may be answered differently.
std::set<std::string> kernels_of(const std::vector<DenseCall>& calls, double scale) {
  std::set<std::string> kernels;
  for (const DenseCall& call : calls)
    if (!call.is_empty()) kernels.insert(kernel_of(call, scale));
  if (kernels.size() > 1 && kernels.contains("sdpa_math"))
    throw std::runtime_error(
        "sdpa_auto: LibTorch's dispatcher picked math for some sequences of the case and a fused kernel for "
        "others, which round at different points: no one profile judges both");
  return kernels;
}

/// "sdpa_cudnn", "sdpa_cudnn+sdpa_flash".
std::string joined(const std::set<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += text.empty() ? name : "+" + name;
  return text;
}

/// Where sequences went to several fused kernels, that of the one with most rounding points.
Profile profile_of(const std::set<std::string>& kernels) {
  if (kernels.contains("sdpa_math")) return sdpa_math_profile();
  if (kernels.contains("sdpa_efficient")) return efficient_profile();
  return kernels.contains("sdpa_cudnn") ? cudnn_profile() : sdpa_flash_profile();
}

class SdpaAuto : public Backend {
 public:
  explicit SdpaAuto(const Device& device) : on_gpu_(device.kind == "cuda") {
    declaration_.name = "sdpa_auto";
    declaration_.version = TORCH_VERSION;
    declaration_.implementation = "pytorch_auto";  // no row of safety.json: what a kernel refuses it gives to another
    declaration_.profile = sdpa_flash_profile();
    declaration_.conventions = sdpa_conventions();
    declaration_.conventions.lse_empty = Conventions::LseEmpty::none;
    declaration_.capabilities = broad_capabilities({"cpu", "cuda"});
    if (!on_gpu_) return;
    declaration_.capabilities.strides = fused_cuda_capabilities().strides;  // the dispatcher does not look at addresses
    declaration_.capabilities.deterministic = false;
  }

  const Declaration& declaration() const override { return declaration_; }

  Run prepare(const Case& c, const Inputs& inputs, Pass pass) const override {
    std::vector<DenseCall> calls = dense_calls(c, inputs, Triangle::top_left_flag, -std::numeric_limits<double>::infinity());
    Run run;
    const std::set<std::string> kernels = kernels_of(calls, inputs.scale);
    const bool math = kernels.contains("sdpa_math");
    run.kernel = joined(kernels);
    run.profile = profile_of(kernels);
    const auto fused_bytes = [&] {
      return on_gpu_ ? fused_cuda_bytes(calls, c, inputs, pass) : sdpa_flash_bytes(calls, inputs, pass);
    };
    run.predicted_bytes = math ? sdpa_math_bytes(calls, inputs, Pass::backward) : fused_bytes();  // the graph keeps P
    const auto operation = [scale = inputs.scale](const DenseCall& call) {
      const bool gqa = call.q.size(1) != call.k.size(1);
      return at::scaled_dot_product_attention(call.q, call.k, call.v, optional_mask(call), 0.0, call.is_causal, scale, gqa);
    };
    run.windows = {autograd_window(std::move(calls), operation, c, pass, Graph::always)};
    return run;
  }

 private:
  bool on_gpu_;
  Declaration declaration_;
};

}  // namespace

std::unique_ptr<Backend> make_sdpa_auto(const Device& device) {
  return std::make_unique<SdpaAuto>(device);
}

}  // namespace attnbench
