// Backends that compute on packed tensors with cu_seqlens. Padded input is unpadded into packed tensors and its results padded
// again with zeros; the positions of the real tokens are found once, in prepare.
#pragma once

#include <memory>
#include <optional>

#include <ATen/core/List.h>

#include "harness/worker/backend.hpp"

namespace attnbench {

/// [tokens, heads, channels]
struct PackedInputs {
  at::Tensor q, k, v, dout;
};

/// One case in one implementation.
class VarlenOperation {
 public:
  virtual ~VarlenOperation() = default;
  /// o [total_q, hq, dv], lse [total_q, hq]
  virtual Outputs forward(const PackedInputs& in) = 0;
  /// dq, dk, dv; `result`: what the last forward returned
  virtual Outputs backward(const PackedInputs& in, const Outputs& result) = 0;
  /// Device memory beyond the outputs.
  virtual int64_t workspace_bytes(Pass pass) const = 0;
};

class VarlenBackend : public Backend {
 public:
  const Declaration& declaration() const final { return declaration_; }
  /// Packed: "op"; padded: "op" on packed tensors and "op+layout" from padded to padded.
  Run prepare(const Case& c, const Inputs& inputs, Pass pass) const final;

 protected:
  /// `inputs` outlives the operation.
  virtual std::unique_ptr<VarlenOperation> operation(const Case& c, const Inputs& inputs) const = 0;
  /// The operation refuses a case without any query or without any key: it is then left out, and the results are zeros.
  virtual bool refuses_nothing_to_do() const { return false; }

  Declaration declaration_;
};

/// Positions of the real tokens of one side in [b, pitch].
class Padding {
 public:
  /// storage_rows: sequence * pitch + position of every real token in order.
  Padding(const std::vector<int64_t>& storage_rows, int64_t b, int64_t pitch, at::Device device);
  /// [b, pitch, …] -> [tokens, …]
  at::Tensor unpad(const at::Tensor& padded) const;
  /// [tokens, …] -> [b, pitch, …], zeros elsewhere
  at::Tensor pad(const at::Tensor& packed) const;

 private:
  int64_t b_, pitch_;
  c10::List<std::optional<at::Tensor>> index_;
};

}  // namespace attnbench
