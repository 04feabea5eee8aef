// From tensors to the arguments of our kernels (kernels/flash_varlen.hpp), on whichever device both are.
#pragma once

#include "backends/attention/varlen.hpp"
#include "kernels/flash_varlen.hpp"

namespace attnbench {

/// cu_q and cu_k point into the inputs.
flash_varlen::Shape flash_varlen_shape(const Case& c, const Inputs& inputs);

/// Results that the arguments below write to, uninitialised: o and lse, or dq, dk and dv. The kernels know nothing of rows behind
/// the last sequence: the last `tail` rows are 0.
Outputs flash_varlen_results(const flash_varlen::Shape& shape, const PackedInputs& in, Pass pass, int64_t tail);

flash_varlen::Forward forward_arguments(const flash_varlen::Shape& shape, const PackedInputs& in, const Outputs& out);
/// `result`: what the forward returned.
flash_varlen::Backward backward_arguments(const flash_varlen::Shape& shape, const PackedInputs& in, const Outputs& result,
                                          const Outputs& out);

}  // namespace attnbench
