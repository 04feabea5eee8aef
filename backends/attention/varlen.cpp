#include "backends/attention/varlen.hpp"

#include <stdexcept>

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/index.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "backends/attention/dense.hpp"

namespace attnbench {
namespace {

/// No queries or no keys: zeros.
class NothingToDo : public VarlenOperation {
 public:
  explicit NothingToDo(Conventions::LseEmpty convention) : lse_(lse_of_empty_row(convention)) {}
  Outputs forward(const PackedInputs& in) override {
    Outputs out;
    out.o = at::zeros_like(in.dout);
    out.lse = at::full({in.q.size(0), in.q.size(1)}, lse_, in.q.options().dtype(at::kFloat));
    return out;
  }
  Outputs backward(const PackedInputs& in, const Outputs&) override {
    Outputs out;
    out.dq = at::zeros_like(in.q);
    out.dk = at::zeros_like(in.k);
    out.dv = at::zeros_like(in.v);
    return out;
  }
  int64_t workspace_bytes(Pass) const override { return 0; }

 private:
  double lse_;
};

/// What the windows of one case share: the packed tensors and the result of the last forward, which backward needs.
class VarlenRun {
 public:
  VarlenRun(const Case& c, const Inputs& inputs, std::unique_ptr<VarlenOperation> operation, std::string name)
      : inputs_(inputs), operation_(std::move(operation)), name_(std::move(name)) {
    if (c.problem.layout == Layout::packed) {
      packed_ = {inputs.q, inputs.k, inputs.v, inputs.dout};
      return;
    }
    queries_.emplace(inputs.q_rows, inputs.q.size(0), inputs.q.size(1), inputs.q.device());
    keys_.emplace(inputs.k_rows, inputs.k.size(0), inputs.k.size(1), inputs.k.device());
    unpad_inputs();
  }

  void unpad_inputs() {
    unpad_for_forward();
    packed_.dout = queries_->unpad(inputs_.dout);
  }

  Outputs packed_forward() {
    result_ = operation_->forward(packed_);
    return result_;
  }
  Outputs packed_backward() {
    if (!result_.o.defined()) throw std::logic_error(name_ + " backward: there was no forward");
    return operation_->backward(packed_, result_);
  }

  Outputs padded_forward() {
    unpad_for_forward();
    packed_forward();
    Outputs padded;
    padded.o = queries_->pad(result_.o);
    padded.lse = queries_->pad(result_.lse);
    return padded;
  }
  /// q, k and v are packed since the forward.
  Outputs padded_backward() {
    packed_.dout = queries_->unpad(inputs_.dout);
    const Outputs packed = packed_backward();
    Outputs padded;
    padded.dq = queries_->pad(packed.dq);
    padded.dk = keys_->pad(packed.dk);
    padded.dv = keys_->pad(packed.dv);
    return padded;
  }

  /// Outputs, packed and padded, packed copies of padded inputs, and the operation's workspace.
  int64_t predicted_bytes(Pass pass) const {
    int64_t bytes = output_bytes(inputs_, pass, true) + operation_->workspace_bytes(pass);
    if (!queries_) return bytes;
    bytes += output_bytes(inputs_, pass, true);
    for (const at::Tensor& packed : {packed_.q, packed_.k, packed_.v, packed_.dout})
      bytes += static_cast<int64_t>(packed.nbytes());
    return bytes;
  }

 private:
  void unpad_for_forward() {
    packed_.q = queries_->unpad(inputs_.q);
    packed_.k = keys_->unpad(inputs_.k);
    packed_.v = keys_->unpad(inputs_.v);
  }

  const Inputs& inputs_;
  std::unique_ptr<VarlenOperation> operation_;
  std::string name_;
  PackedInputs packed_;
  std::optional<Padding> queries_, keys_;  ///< of padded input only
  Outputs result_;
};

}  // namespace

Padding::Padding(const std::vector<int64_t>& storage_rows, int64_t b, int64_t pitch, at::Device device) : b_(b), pitch_(pitch) {
  std::vector<int64_t> sequences, positions;
  for (const int64_t row : storage_rows) {
    sequences.push_back(row / pitch);
    positions.push_back(row % pitch);
  }
  index_ = {at::tensor(sequences, at::kLong).to(device), at::tensor(positions, at::kLong).to(device)};
}

at::Tensor Padding::unpad(const at::Tensor& padded) const {
  return at::index(padded, index_);
}

at::Tensor Padding::pad(const at::Tensor& packed) const {
  std::vector<int64_t> sizes = packed.sizes().vec();
  sizes.insert(sizes.begin(), b_);
  sizes[1] = pitch_;
  return at::zeros(sizes, packed.options()).index_put_(index_, packed);
}

Run VarlenBackend::prepare(const Case& c, const Inputs& inputs, Pass pass) const {
  const bool nothing_to_do = inputs.lengths.total_q() == 0 || inputs.lengths.total_k() == 0;
  std::unique_ptr<VarlenOperation> chosen;
  if (nothing_to_do && refuses_nothing_to_do()) {
    chosen = std::make_unique<NothingToDo>(declaration_.conventions.lse_empty);
  } else {
    chosen = operation(c, inputs);
  }
  const auto state = std::make_shared<VarlenRun>(c, inputs, std::move(chosen), declaration_.name);
  Run run;
  run.profile = declaration_.profile;
  run.predicted_bytes = state->predicted_bytes(pass);
  run.windows = {{"op", [state] { return state->packed_forward(); }, [state] { return state->packed_backward(); }, {}}};
  if (c.problem.layout == Layout::padded) {
    run.windows.front().refresh = [state] { state->unpad_inputs(); };
    run.windows.push_back(
        {"op+layout", [state] { return state->padded_forward(); }, [state] { return state->padded_backward(); }, {}});
  }
  return run;
}

}  // namespace attnbench
