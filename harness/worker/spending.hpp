// Where the seconds of a record go: what judging costs beside the calls that are judged. Counted on the thread that works on a
// case; a scope within another one takes its time away from the outer one, so that no second counts twice.
//
//   inputs     drawing them and taking their fingerprints
//   oracle     float64 values and variances, and the gradients given a kernel's own O
//   emulator   the same rounding as the profile's, and eager's
//   calls      a backend's forward, or its forward and backward; fastest_call_s is the fastest of them, undisturbed by the others
//   poison     filling and guarding new memory, looking at fingerprints, guard bands and the state of the process
//   gates      comparing outputs with the oracle's
//
// On a GPU the seconds are those of LibTorch's current stream: from where it reaches the beginning of a scope to where it reaches
// the end, whether it works or waits for the host. What the host does while the stream has work left costs nothing. Nobody waits,
// but at both ends of `calls`: no call hides behind what was queued before it.
#pragma once

#include <optional>

#include "harness/run/declaration.hpp"
#include "harness/run/record.hpp"

namespace attnbench {

enum class Expense { inputs, oracle, emulator, calls, poison, gates };

/// Whose time is counted. Before it is said: the CPU's.
void count_time_of(const Device& device);

class SpendingScope {
 public:
  explicit SpendingScope(Expense expense);
  ~SpendingScope();
  SpendingScope(const SpendingScope&) = delete;
  SpendingScope& operator=(const SpendingScope&) = delete;

 private:
  const Expense expense_;
  const std::optional<Expense> outer_;
};

/// While it lives, the calls of one run of a backend are added up, to find the fastest.
class WholeCall {
 public:
  WholeCall();
  ~WholeCall();
  WholeCall(const WholeCall&) = delete;
  WholeCall& operator=(const WholeCall&) = delete;

 private:
  double before_s_;
};

/// What this thread has spent since it was last asked; of one that was never asked, nothing is counted. Waits for the GPU.
Spending take_spending();

}  // namespace attnbench
