#include "harness/worker/spending.hpp"

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>
#include <utility>
#include <vector>

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "harness/worker/cuda_device.hpp"

namespace attnbench {

namespace {

using Clock = std::chrono::steady_clock;

Device counted;  ///< by every thread

bool is_gpu() {
  return counted.kind == "cuda";
}

const char* name_of(Expense expense) {
  constexpr const char* kNames[] = {"inputs", "oracle", "emulator", "calls", "poison", "gates"};
  return kNames[static_cast<int>(expense)];
}

/// The moments at which a thread's expense changed: of a GPU, events in its stream.
class Timeline {
 public:
  std::optional<Expense> now() const { return now_; }

  void begin(std::optional<Expense> expense) noexcept {
    const bool changes = expense != now_ || changes_.empty();
    now_ = expense;
    if (!is_counted_ || !changes) return;
    try {
      mark();
    } catch (const std::exception&) {  // of a GPU that failed, which somebody else tells
      changes_.clear();
    }
    if (changes_.size() == kMostChanges) spent_so_far();
  }

  /// What was spent until now stays.
  void count_on(const Device& device) {
    spent_so_far();
    changes_.clear();
    counted = device;
    begin(now_);
  }

  /// A scope of this expense ended.
  void note(Expense expense) {
    if (is_counted_) ++spent_.items[name_of(expense)].times;
  }

  Spending& spent_so_far() noexcept {
    if (!is_counted_) return spent_;
    try {
      mark();
      if (is_gpu()) events_[changes_.size() - 1].synchronize();
      for (size_t i = 0; i + 1 < changes_.size(); ++i)
        if (changes_[i].to) spent_.items[name_of(*changes_[i].to)].seconds += seconds_after(i);
    } catch (const std::exception&) {
    }
    changes_.clear();
    begin(now_);
    return spent_;
  }

  Spending take() {
    Spending taken = std::exchange(spent_so_far(), {});
    is_counted_ = true;
    if (changes_.empty()) begin(now_);
    return taken;
  }

 private:
  static constexpr size_t kMostChanges = 4096;  ///< before they are added up, though nobody asks

  struct Change {
    std::optional<Expense> to;
    Clock::time_point at;
  };

  void mark() {
    changes_.push_back({now_, Clock::now()});
    if (!is_gpu()) return;
    if (events_.size() < changes_.size()) events_.emplace_back(c10::kCUDA, c10::EventFlag::BACKEND_DEFAULT);
    const c10::impl::VirtualGuardImpl cuda(c10::kCUDA);
    events_[changes_.size() - 1].record(cuda.getStream(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(counted.index))));
  }

  double seconds_after(size_t i) const {
    if (is_gpu()) return 1e-3 * events_[i].elapsedTime(events_[i + 1]);
    return std::chrono::duration<double>(changes_[i + 1].at - changes_[i].at).count();
  }

  std::optional<Expense> now_;
  bool is_counted_ = false;
  std::vector<Change> changes_;
  std::deque<c10::Event> events_;  ///< by change; used again
  Spending spent_;
};
thread_local Timeline timeline;

void wait_at_ends_of(Expense expense) {
  if (expense == Expense::calls && is_gpu()) wait_for_device();
}

}  // namespace

void count_time_of(const Device& device) {
  timeline.count_on(device);
}

SpendingScope::SpendingScope(Expense expense) : expense_(expense), outer_(timeline.now()) {
  wait_at_ends_of(expense_);
  timeline.begin(expense_);
}

SpendingScope::~SpendingScope() {
  wait_at_ends_of(expense_);
  timeline.begin(outer_);
  timeline.note(expense_);
}

WholeCall::WholeCall() : before_s_(timeline.spent_so_far().items[name_of(Expense::calls)].seconds) {}

WholeCall::~WholeCall() {
  Spending& spent = timeline.spent_so_far();
  const double seconds = spent.items[name_of(Expense::calls)].seconds - before_s_;
  spent.fastest_call_s = spent.fastest_call_s > 0 ? std::min(spent.fastest_call_s, seconds) : seconds;
}

Spending take_spending() {
  return timeline.take();
}

}  // namespace attnbench
