// Runs the cases of a plan through workers: several at once where nothing is timed, one alone where something is, or is repeated.
#pragma once

#include <vector>

#include "harness/run/coordinator.hpp"

namespace attnbench {

class WorkerPool {
 public:
  /// Starts the first worker; throws what Coordinator throws. The others, of `workers` in all, start with the run; each has a log
  /// of its own: worker.log, worker-2.log, … There are fewer where the GPU has less memory than `bytes_each` for each of them.
  WorkerPool(const WorkerSettings& settings, int workers, int64_t bytes_each = 0);

  const Hello& hello() const { return first_.hello(); }
  int workers() const { return workers_; }

  /// Every run of every case ends as one record. With one worker the cases keep their order; with several those that need not
  /// have the device to themselves come first, in any order, then the others (timed, with repeats, audited) through the first
  /// worker, when all others have ended. With --check-only nothing is timed.
  /// Throws what Coordinator and the sink throw; nobody begins with another case after that.
  void run(const std::vector<PlannedCase>& plan, const RunFields& fields, ResultSink& sink);
  /// One case through the first worker.
  void run_case(const PlannedCase& planned, const RunFields& fields, ResultSink& sink) { first_.run_case(planned, fields, sink); }

  /// Ends the first worker in peace; the others end with their run().
  void finish() { first_.finish(); }

 private:
  const WorkerSettings settings_;
  Coordinator first_;
  const int workers_;
};

}  // namespace attnbench
