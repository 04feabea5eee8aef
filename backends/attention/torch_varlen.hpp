// What the calls of LibTorch's packed operations have in common: cu_seqlens, longest lengths, mask, scale.
#pragma once

#include "backends/attention/fused_cuda.hpp"
#include "backends/attention/varlen.hpp"

namespace attnbench {

class TorchVarlenOperation : public VarlenOperation {
 public:
  TorchVarlenOperation(const Case& c, const Inputs& inputs) : problem_(c.problem), inputs_(inputs) {}

  int64_t workspace_bytes(Pass pass) const override {
    const auto b = static_cast<int64_t>(lengths().q.size());
    return fused_cuda_workspace_bytes(problem_, {lengths().total_q() + 128 * b, lengths().total_k()}, pass);
  }

 protected:
  const Problem& problem() const { return problem_; }
  const SequenceLengths& lengths() const { return inputs_.lengths; }
  const at::Tensor& cu_q() const { return inputs_.cu_q; }
  const at::Tensor& cu_k() const { return inputs_.cu_k; }
  int64_t max_q() const { return lengths().max_q(); }
  int64_t max_k() const { return lengths().max_k(); }
  bool is_causal() const { return problem_.mask == Mask::causal; }
  double scale() const { return inputs_.scale; }

 private:
  Problem problem_;
  const Inputs& inputs_;
};

}  // namespace attnbench
