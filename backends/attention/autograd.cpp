#include "backends/attention/autograd.hpp"

#include <memory>
#include <stdexcept>

#include <ATen/ops/zeros_like.h>
#include <c10/core/AutogradState.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

namespace attnbench {
namespace {

/// Autograd in the calling thread, while it lives.
class OneThread {
 public:
  explicit OneThread(bool wanted) : before_(c10::AutogradState::get_tls_state().get_multithreading_enabled()) {
    if (wanted) c10::AutogradState::get_tls_state().set_multithreading_enabled(false);
  }
  ~OneThread() { c10::AutogradState::get_tls_state().set_multithreading_enabled(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  const bool before_;
};

at::Tensor leaf(const at::Tensor& input, bool with_gradient) {
  return input.detach().requires_grad_(with_gradient);
}

class AutogradRun {
 public:
  AutogradRun(std::vector<DenseCall> calls, DenseOperation operation, const Case& c, bool records)
      : calls_(std::move(calls)),
        operation_(std::move(operation)),
        layout_(c.problem.layout),
        is_timed_(c.metadata.timed),
        records_(records) {
    for (DenseCall& call : calls_) {
      call.q = leaf(call.q, records_);
      call.k = leaf(call.k, records_);
      call.v = leaf(call.v, records_);
    }
  }

  Outputs forward() {
    recorded_.clear();
    std::vector<at::Tensor> parts;
    for (const DenseCall& call : calls_) {
      const c10::AutoGradMode mode(records_);
      const at::Tensor o = call.is_empty() ? at::zeros_like(call.dout) : operation_(call);
      if (records_ && !call.is_empty()) recorded_.push_back(o);
      parts.push_back(o.detach());
    }
    Outputs outputs;
    outputs.o = join(parts, layout_);
    return outputs;
  }

  Outputs backward() {
    std::vector<at::Tensor> leaves, douts;
    for (const DenseCall& call : calls_) {
      if (call.is_empty()) continue;
      leaves.insert(leaves.end(), {call.q, call.k, call.v});
      douts.push_back(call.dout);
    }
    if (recorded_.size() != douts.size()) throw std::logic_error("autograd backward: there was no forward that recorded a graph");
    std::vector<at::Tensor> gradients;
    const OneThread one_thread(!is_timed_);
    if (!leaves.empty()) gradients = torch::autograd::grad(recorded_, leaves, douts, /*retain_graph=*/true);
    std::vector<DenseGradients> parts;
    auto next = gradients.begin();
    for (const DenseCall& call : calls_) {
      parts.push_back(call.is_empty() ? zero_gradients(call) : DenseGradients{next[0], next[1], next[2]});
      if (!call.is_empty()) next += 3;
    }
    return join_gradients(parts, layout_);
  }

 private:
  std::vector<DenseCall> calls_;
  DenseOperation operation_;
  Layout layout_;
  bool is_timed_, records_;
  std::vector<at::Tensor> recorded_;  ///< outputs with their graphs, of the calls that are not empty
};

}  // namespace

Window autograd_window(std::vector<DenseCall> calls, DenseOperation operation, const Case& c, Pass pass, Graph graph) {
  const bool records = pass == Pass::backward || graph == Graph::always;
  const auto run = std::make_shared<AutogradRun>(std::move(calls), std::move(operation), c, records);
  return {pass == Pass::forward ? "op" : "autograd", [run] { return run->forward(); }, [run] { return run->backward(); }};
}

}  // namespace attnbench
