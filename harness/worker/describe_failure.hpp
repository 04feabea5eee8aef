// Everything that is told of a tensor that failed. Nothing here is computed for one that passed.
#pragma once

#include "harness/worker/verdict_statistics.hpp"

namespace attnbench {

/// Beside what measure_errors() was given and said.
struct FailureContext {
  Dtype dtype = Dtype::bf16;
  double z_limit = 0;
  double emulator_rms = 0;  ///< RMS(z) of the emulator on this tensor; 0: unknown
  int64_t group = 1;        ///< neighbouring heads of this tensor that share a key head
  bool over_keys = false;   ///< its tokens are keys
};

/// `got`, `expected`: as in measure_errors(), which made `statistics`. ULP percentiles are over at most 2^22 elements, spread
/// over all.
TensorFailure describe_failure(const at::Tensor& got, const Expected& expected, const TokenShape& shape,
                               const ErrorStatistics& statistics, const FailureContext& context);

}  // namespace attnbench
