// One run of a prepared case in checked memory: what it computed, what it allocated, and what it did that it must not.
#pragma once

#include <string>

#include "harness/run/record.hpp"
#include "harness/worker/backend.hpp"
#include "harness/worker/sealed_inputs.hpp"

namespace attnbench {

struct WatchedRun {
  Outputs outputs;         ///< of the last window; a backward pass: o and lse of its forward too
  Memory memory;           ///< of a backward pass: of forward and backward together
  std::string misconduct;  ///< "wrote to its input q", "wrote 4 bytes past the end of its output o …"; empty: none
};

/// Outputs start as NaN. Overwritten inputs are restored before it returns. An exception of the backend passes through.
WatchedRun run_watched(const Run& run, Pass pass, SealedInputs& inputs);

}  // namespace attnbench
