// Backends that call one dense ATen operation and its backward themselves, with no dispatcher in between: what the operation
// refuses is an error, never another kernel.
#pragma once

#include <vector>

#include "backends/attention/dense.hpp"

namespace attnbench {

/// What a forward leaves for the backward of the same call.
struct DenseForward {
  at::Tensor o;    ///< [b, hq, lq, dv]
  at::Tensor lse;  ///< [b, hq, lq], natural logarithm
  std::vector<at::Tensor> saved;
};

class PinnedBackend : public Backend {
 public:
  const Declaration& declaration() const final { return declaration_; }
  Run prepare(const Case& c, const Inputs& inputs, Pass pass) const final;

  /// The operation itself, for calls with queries and keys.
  virtual DenseForward forward(const DenseCall& call, double scale) const = 0;
  virtual DenseGradients backward(const DenseCall& call, const DenseForward& result, double scale) const = 0;

 protected:
  /// As the operation wants them; part of no window.
  virtual std::vector<DenseCall> calls(const Case& c, const Inputs& inputs) const;
  /// Predicted peak, outputs included.
  virtual int64_t bytes(const std::vector<DenseCall>& calls, const Case& c, const Inputs& inputs, Pass pass) const;

  Declaration declaration_;
};

/// Predicted peak of a fused CUDA kernel that is called call by call, outputs included: these are there twice where several
/// are joined.
int64_t fused_cuda_bytes(const std::vector<DenseCall>& calls, const Case& c, const Inputs& inputs, Pass pass);

}  // namespace attnbench
