#include "backends/attention/pinned.hpp"

#include <algorithm>
#include <limits>
#include <memory>
#include <stdexcept>

#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>

#include "backends/attention/fused_cuda.hpp"

namespace attnbench {
namespace {

/// The windows of one case: the calls and what their last forward left.
class PinnedRun {
 public:
  PinnedRun(const PinnedBackend& backend, std::vector<DenseCall> calls, double scale, Layout layout)
      : backend_(backend), calls_(std::move(calls)), scale_(scale), layout_(layout) {}

  Outputs forward() {
    results_.clear();
    std::vector<at::Tensor> o, lse;
    for (const DenseCall& call : calls_) {
      results_.push_back(call.is_empty() ? empty_result(call) : backend_.forward(call, scale_));
      o.push_back(results_.back().o);
      lse.push_back(results_.back().lse);
    }
    Outputs outputs;
    outputs.o = join(o, layout_);
    outputs.lse = join(lse, layout_);
    return outputs;
  }

  Outputs backward() const {
    if (results_.size() != calls_.size()) throw std::logic_error(backend_.declaration().name + " backward: there was no forward");
    std::vector<DenseGradients> parts;
    for (size_t n = 0; n < calls_.size(); n++)
      parts.push_back(calls_[n].is_empty() ? zero_gradients(calls_[n]) : backend_.backward(calls_[n], results_[n], scale_));
    return join_gradients(parts, layout_);
  }

 private:
  /// The operations do not take calls without queries or without keys.
  DenseForward empty_result(const DenseCall& call) const {
    const double lse = lse_of_empty_row(backend_.declaration().conventions.lse_empty);
    return {at::zeros_like(call.dout),
            at::full({call.q.size(0), call.q.size(1), call.q.size(2)}, lse, call.q.options().dtype(at::kFloat)),
            {}};
  }

  const PinnedBackend& backend_;
  std::vector<DenseCall> calls_;
  double scale_;
  Layout layout_;
  std::vector<DenseForward> results_;  ///< of the last forward, one a call
};

}  // namespace

Run PinnedBackend::prepare(const Case& c, const Inputs& inputs, Pass pass) const {
  std::vector<DenseCall> ready = calls(c, inputs);
  Run run;
  run.profile = declaration_.profile;
  run.predicted_bytes = bytes(ready, c, inputs, pass);
  const auto state = std::make_shared<PinnedRun>(*this, std::move(ready), inputs.scale, c.problem.layout);
  run.windows = {{"op", [state] { return state->forward(); }, [state] { return state->backward(); }}};
  return run;
}

std::vector<DenseCall> PinnedBackend::calls(const Case& c, const Inputs& inputs) const {
  return dense_calls(c, inputs, Triangle::top_left_flag, -std::numeric_limits<double>::infinity());
}

int64_t PinnedBackend::bytes(const std::vector<DenseCall>& calls, const Case& c, const Inputs& inputs, Pass pass) const {
  return fused_cuda_bytes(calls, c, inputs, pass);
}

int64_t fused_cuda_bytes(const std::vector<DenseCall>& calls, const Case& c, const Inputs& inputs, Pass pass) {
  int64_t workspace = 0;
  for (const DenseCall& call : calls) {
    const FusedSize size{call.q.size(0) * ((call.q.size(2) + 127) / 128 * 128), call.k.size(0) * call.k.size(2)};
    workspace = std::max(workspace, fused_cuda_workspace_bytes(c.problem, size, pass));
  }
  return output_bytes(inputs, pass, true) * (calls.size() > 1 ? 2 : 1) + workspace;
}

}  // namespace attnbench
