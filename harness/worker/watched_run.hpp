// One run of a prepared case in checked memory: what it computed, what it allocated, and what it did that it must not.
#pragma once

#include <functional>
#include <string>

#include "harness/run/record.hpp"
#include "harness/worker/backend.hpp"
#include "harness/worker/sealed_inputs.hpp"

namespace attnbench {

/// On the inputs as they are, or mirrored: V negated before a forward; before a forward and its backward V of every other key
/// head, and between them dO. Then o, or dq, dk and dv, are computed with other signs, and are handed back with those of a plain
/// call: as its, but for a kernel that did not compute them anew, or not from what the inputs hold now. New memory, and tokens
/// that nobody may read, hold NaN in a plain call, and something finite in a mirrored one: not every kernel hands on a NaN that
/// it reads.
enum class Call { plain, mirrored };

struct WatchedRun {
  Outputs outputs;         ///< of the last window; a backward pass: o and lse of its forward too
  Outputs handed_out;      ///< the same in the tensors that the calls returned, whatever a mirrored call makes of them
  Memory memory;           ///< of a backward pass: of forward and backward together
  std::string misconduct;  ///< "wrote to its input q", "wrote 4 bytes past the end of its output o …"; empty: none
};

/// What of the inputs a mirrored call finds negated, for messages: "V negated, whose outputs are negated back".
const char* mirror_of(const Inputs& inputs, Pass pass);

/// Which of the outputs lies in memory of something else that is held; empty: none. Every call writes new outputs: who returns
/// the same tensor in every call changes the results that the next ones are held against.
std::string borrowed(const Outputs& outputs, const NamedTensors& held);

/// Overwritten inputs are restored before it returns. An exception of the backend passes through.
WatchedRun run_watched(const Run& run, Pass pass, SealedInputs& inputs, Call call = Call::plain);

/// The outputs of the last window, which start as NaN, of a call of which nothing else is looked at. `delay` (disturbance.hpp):
/// V of a forward, or dO between a forward and its backward, is written late; empty: it is there.
Outputs run_again(const Run& run, Pass pass, SealedInputs& inputs, const std::function<void()>& delay);

/// The outputs of the last window, as a user's call computes them: in memory that nobody watches.
Outputs run_unwatched(const Run& run, Pass pass, SealedInputs& inputs, Call call);

}  // namespace attnbench
