// sdpa_flash: LibTorch's CPU flash kernel, forward and backward called directly (no dispatcher).
#include <limits>
#include <memory>
#include <stdexcept>

#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>
#include <torch/version.h>

#include "backends/attention/sdpa.hpp"

namespace attnbench {
namespace {

class FlashRun {
 public:
  FlashRun(std::vector<DenseCall> calls, double scale, Layout layout)
      : calls_(std::move(calls)), scale_(scale), layout_(layout) {}

  Outputs forward() {
    o_.clear();
    lse_.clear();
    for (const DenseCall& call : calls_) {
      auto [o, lse] = call.is_empty() ? empty_output(call)
                                      : at::_scaled_dot_product_flash_attention_for_cpu(
                                            call.q, call.k, call.v, 0.0, call.is_causal, optional_mask(call), scale_);
      o_.push_back(std::move(o));
      lse_.push_back(std::move(lse));
    }
    Outputs outputs;
    outputs.o = join(o_, layout_);
    outputs.lse = join(lse_, layout_);
    return outputs;
  }

  Outputs backward() {
    if (o_.size() != calls_.size()) throw std::logic_error("sdpa_flash backward: there was no forward");
    std::vector<at::Tensor> dq, dk, dv;
    for (size_t n = 0; n < calls_.size(); n++) {
      auto [q, k, v] = gradients(calls_[n], o_[n], lse_[n]);
      dq.push_back(std::move(q));
      dk.push_back(std::move(k));
      dv.push_back(std::move(v));
    }
    Outputs outputs;
    outputs.dq = join(dq, layout_);
    outputs.dk = join(dk, layout_);
    outputs.dv = join(dv, layout_);
    return outputs;
  }

 private:
  /// The operation divides by zero when there are no queries or no keys.
  static std::tuple<at::Tensor, at::Tensor> empty_output(const DenseCall& call) {
    const at::Tensor lse =
        at::full({call.q.size(0), call.q.size(1), call.q.size(2)}, -std::numeric_limits<float>::infinity(), at::kFloat);
    return {at::zeros_like(call.dout), lse};
  }

  std::tuple<at::Tensor, at::Tensor, at::Tensor> gradients(const DenseCall& call, const at::Tensor& o,
                                                           const at::Tensor& lse) const {
    if (call.is_empty()) return {at::zeros_like(call.q), at::zeros_like(call.k), at::zeros_like(call.v)};
    return at::_scaled_dot_product_flash_attention_for_cpu_backward(call.dout, call.q, call.k, call.v, o, lse, 0.0,
                                                                    call.is_causal, optional_mask(call), scale_);
  }

  std::vector<DenseCall> calls_;
  double scale_;
  Layout layout_;
  std::vector<at::Tensor> o_, lse_;  ///< of the last forward, one a call
};

class SdpaFlash : public Backend {
 public:
  SdpaFlash() {
    declaration_.name = "sdpa_flash";
    declaration_.version = TORCH_VERSION;
    declaration_.implementation = "pytorch_flash";
    declaration_.profile = sdpa_flash_profile();
    declaration_.conventions = sdpa_conventions();
    declaration_.capabilities = cpu_capabilities();
    declaration_.capabilities.dv_differs = false;  // "Q/K/V should have the same head size"
    declaration_.capabilities.returns_lse = true;
  }

  const Declaration& declaration() const override { return declaration_; }

  Run prepare(const Case& c, const Inputs& inputs, Pass pass) const override {
    std::vector<DenseCall> calls = dense_calls(c, inputs, Triangle::flag, -std::numeric_limits<double>::infinity());
    Run run;
    run.profile = declaration_.profile;
    run.predicted_bytes = sdpa_flash_bytes(calls, inputs, pass);
    const auto state = std::make_shared<FlashRun>(std::move(calls), inputs.scale, c.problem.layout);
    run.windows = {{"op", [state] { return state->forward(); }, [state] { return state->backward(); }}};
    return run;
  }

 private:
  Declaration declaration_;
};

}  // namespace

std::unique_ptr<Backend> make_sdpa_flash(const Device&) {
  return std::make_unique<SdpaFlash>();
}

}  // namespace attnbench
