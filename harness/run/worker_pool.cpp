#include "harness/run/worker_pool.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include <fmt/format.h>

#include "harness/run/errors.hpp"

namespace attnbench {
namespace {

/// Lets one thread at a time through.
class SharedSink : public ResultSink {
 public:
  explicit SharedSink(ResultSink& sink) : sink_(sink) {}
  void take(const Record& record) override {
    const std::lock_guard lock(mutex_);
    sink_.take(record);
  }
  void take(const Comparison& comparison) override {
    const std::lock_guard lock(mutex_);
    sink_.take(comparison);
  }
  void on_stage(const PlannedCase& planned, const Stage& stage) override {
    const std::lock_guard lock(mutex_);
    sink_.on_stage(planned, stage);
  }
  void tick() override {
    const std::lock_guard lock(mutex_);
    sink_.tick();
  }

 private:
  ResultSink& sink_;
  std::mutex mutex_;
};

/// Cases that several threads take from, until none is left or one of the threads has failed.
class Queue {
 public:
  explicit Queue(const std::vector<const PlannedCase*>& cases) : cases_(cases) {}

  /// Null: there is nothing more to do.
  const PlannedCase* take() {
    const size_t i = next_++;
    return i < cases_.size() && !failed_ ? cases_[i] : nullptr;
  }
  /// Keeps the exception that is being handled, if it is the first.
  void fail() {
    const std::lock_guard lock(mutex_);
    if (!failed_.exchange(true)) error_ = std::current_exception();
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  const std::vector<const PlannedCase*>& cases_;
  std::atomic<size_t> next_ = 0;
  std::atomic<bool> failed_ = false;
  std::mutex mutex_;
  std::exception_ptr error_;
};

void run_some(Coordinator& coordinator, Queue& queue, const RunFields& fields, ResultSink& sink) try {
  while (const PlannedCase* planned = queue.take()) coordinator.run_case(*planned, fields, sink);
} catch (...) {
  queue.fail();
}

/// One of the other workers. One that does not start, as where the GPU has no memory for it, is done without, and that is said.
void help(const WorkerSettings& settings, Queue& queue, const RunFields& fields, ResultSink& sink) {
  try {
    Coordinator coordinator(settings);
    run_some(coordinator, queue, fields, sink);
    coordinator.finish();
  } catch (const InfrastructureError& error) {
    fmt::print(stderr, "attnbench: one worker less, the others go on: {}\n", error.what());
  } catch (...) {
    queue.fail();
  }
}

/// What is timed must not be disturbed; repeats and audits disturb by themselves, as much as they mean to.
bool needs_the_device(const Metadata& metadata, const RunFields& fields) {
  return (metadata.timed && !fields.check_only) || metadata.repeats > 0 || fields.audit_repeats > 0;
}

/// As many of `workers` as have `bytes_each` of the device's memory, at least one; all on a device that does not say how much it
/// has.
int with_memory(int workers, const Hello& hello, int64_t bytes_each) {
  const nlohmann::json::json_pointer memory("/gpu/memory_bytes");
  if (bytes_each == 0 || !hello.environment.contains(memory) || !hello.environment[memory].is_number_integer()) return workers;
  return static_cast<int>(std::clamp<int64_t>(hello.environment[memory].get<int64_t>() / bytes_each, 1, workers));
}

}  // namespace

WorkerPool::WorkerPool(const WorkerSettings& settings, int workers, int64_t bytes_each)
    : settings_(settings), first_(settings), workers_(with_memory(workers, first_.hello(), bytes_each)) {}

void WorkerPool::run(const std::vector<PlannedCase>& plan, const RunFields& fields, ResultSink& sink) {
  std::vector<const PlannedCase*> shared, alone;
  for (const PlannedCase& planned : plan) {
    (workers_ > 1 && !needs_the_device(planned.c.metadata, fields) ? shared : alone).push_back(&planned);
  }
  SharedSink shared_sink(sink);
  Queue queue(shared);
  std::vector<std::jthread> helpers;
  for (int i = 2; i <= workers_ && !shared.empty(); ++i) {
    WorkerSettings settings = settings_;
    settings.log.replace_filename(fmt::format("{}-{}{}", settings.log.stem().string(), i, settings.log.extension().string()));
    helpers.emplace_back([&, settings] { help(settings, queue, fields, shared_sink); });
  }
  run_some(first_, queue, fields, shared_sink);
  helpers.clear();  // waits for them
  queue.rethrow();
  for (const PlannedCase* planned : alone) first_.run_case(*planned, fields, sink);
}

}  // namespace attnbench
