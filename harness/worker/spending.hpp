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
// On a GPU a scope waits for the device at both ends. Within `poison`, kernels that fill new memory or look at it are counted by
// their launch, and fingerprints until their sums are there.
#pragma once

#include <chrono>

#include "harness/run/declaration.hpp"
#include "harness/run/record.hpp"

namespace attnbench {

enum class Expense { inputs, oracle, emulator, calls, poison, gates };

/// The device that scopes wait for; before it is said, or for a CPU, they wait for nothing.
void wait_in_spending_scopes(const Device& device);

class SpendingScope {
 public:
  enum class Waits { yes, no };
  explicit SpendingScope(Expense expense, Waits waits = Waits::yes);
  ~SpendingScope();
  SpendingScope(const SpendingScope&) = delete;
  SpendingScope& operator=(const SpendingScope&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  const Expense expense_;
  const Waits waits_;
  SpendingScope* const outer_;
  Clock::time_point start_;
  double within_s_ = 0;  ///< of scopes within this one
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

/// What this thread has spent since it was last asked.
Spending take_spending();

}  // namespace attnbench
