// Sends cases to a worker, one request at a time, and sees to it that every run of a case ends as exactly one record,
// whatever the worker does: crash, hang, rubbish.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "harness/run/dispatch.hpp"
#include "harness/run/plan.hpp"
#include "harness/run/protocol.hpp"
#include "harness/run/worker_process.hpp"

namespace attnbench {

struct WorkerSettings {
  std::vector<std::string> command;  ///< with --device; the descriptors are added
  std::filesystem::path log;         ///< stdout and stderr of all workers of the run
  double timeout_s = 0;              ///< without a message of the worker
};

/// Fields that the coordinator adds to each record.
struct RunFields {
  std::string run;
  std::optional<int> assume_sm;  ///< safety is judged for this SM instead of the device's
  bool check_only = false;
  std::string dump;                         ///< folder for what the runs computed; empty: none
  int64_t audit_repeats = 0;                ///< calls of the audit that follows the judging; 0: no audit
  std::string attention = kUsualAttention;  ///< what the workers have been told to compute the attention of layers with
};

/// Where results go, as they come.
class ResultSink {
 public:
  virtual ~ResultSink() = default;
  virtual void take(const Record& record) = 0;
  virtual void take(const Comparison& comparison) = 0;
  virtual void on_stage(const PlannedCase& planned, const Stage& stage) = 0;
  virtual void tick() = 0;  ///< a few times a second while the worker computes
};

class Coordinator {
 public:
  /// Starts the first worker. Throws UsageError with the worker's own sentence if it ends with exit code 2 (a device that is
  /// not there), InfrastructureError if no worker says hello.
  explicit Coordinator(WorkerSettings settings);

  const Hello& hello() const { return hello_; }

  /// Throws InfrastructureError if workers keep dying before they begin with anything, Interrupted after a signal.
  void run_case(const PlannedCase& planned, const RunFields& fields, ResultSink& sink);

  /// Ends the worker in peace. Without it the worker is killed.
  void finish();

 private:
  struct Exchange;
  void start_worker();
  void ensure_worker();
  std::string greet();
  Exchange exchange(const PlannedCase& planned, const RunFields& fields, ResultSink& sink);
  std::string handle(const nlohmann::json& message, const PlannedCase& planned, const RunFields& fields, Exchange& exchange,
                     ResultSink& sink);
  Record complete(nlohmann::json line, const PlannedCase& planned, const RunFields& fields) const;
  Record error_record(const PlannedCase& planned, const std::pair<std::string, Pass>& run, const RunFields& fields,
                      const std::string& reason) const;
  std::string bury(const std::string& reason, const std::optional<Stage>& stage);
  WorkerProcess::Deadline deadline() const;

  WorkerSettings settings_;
  Hello hello_;
  std::unique_ptr<WorkerProcess> worker_;
  std::uintmax_t log_begin_ = 0;  ///< size of the log when the worker was started
  int64_t next_request_ = 1;
  int fruitless_cases_ = 0;  ///< in a row: no worker began with any of their runs
};

}  // namespace attnbench
