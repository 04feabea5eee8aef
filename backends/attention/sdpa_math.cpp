// sdpa_math: LibTorch's scaled_dot_product_attention written out in its operations, pinned (no dispatcher). It converts
// bf16 and fp16 to float32 first and rounds nothing but its outputs. The backward is autograd's.
#include <limits>

#include <ATen/ops/_scaled_dot_product_attention_math.h>
#include <torch/version.h>

#include "backends/attention/autograd.hpp"
#include "backends/attention/sdpa.hpp"

namespace attnbench {
namespace {

class SdpaMath : public Backend {
 public:
  SdpaMath() {
    declaration_.name = "sdpa_math";
    declaration_.version = TORCH_VERSION;
    declaration_.implementation = "pytorch_math";
    declaration_.profile = sdpa_math_profile();
    declaration_.conventions = sdpa_conventions();
    declaration_.conventions.lse_empty = Conventions::LseEmpty::none;
    declaration_.capabilities = broad_capabilities({"cpu", "cuda"});
  }

  const Declaration& declaration() const override { return declaration_; }

  Run prepare(const Case& c, const Inputs& inputs, Pass pass) const override {
    std::vector<DenseCall> calls = dense_calls(c, inputs, Triangle::top_left_flag, -std::numeric_limits<double>::infinity());
    Run run;
    run.profile = declaration_.profile;
    run.predicted_bytes = sdpa_math_bytes(calls, inputs, pass);
    const auto operation = [scale = inputs.scale](const DenseCall& call) {
      const bool gqa = call.q.size(1) != call.k.size(1);
      return std::get<0>(at::_scaled_dot_product_attention_math(call.q, call.k, call.v, optional_mask(call), 0.0, call.is_causal,
                                                                {}, scale, gqa));
    };
    run.windows = {autograd_window(std::move(calls), operation, c, pass, Graph::for_backward)};
    return run;
  }

 private:
  Declaration declaration_;
};

}  // namespace

std::unique_ptr<Backend> make_sdpa_math(const Device&) {
  return std::make_unique<SdpaMath>();
}

}  // namespace attnbench
