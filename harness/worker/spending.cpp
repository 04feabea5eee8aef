#include "harness/worker/spending.hpp"

#include <algorithm>
#include <utility>

#include "harness/worker/cuda_device.hpp"

namespace attnbench {

namespace {

Device waited_for;
thread_local SpendingScope* innermost = nullptr;
thread_local Spending spent;

void wait(SpendingScope::Waits waits) {
  if (waits == SpendingScope::Waits::yes && waited_for.kind == "cuda") wait_for_device();
}

const char* name_of(Expense expense) {
  constexpr const char* kNames[] = {"inputs", "oracle", "emulator", "calls", "poison", "gates"};
  return kNames[static_cast<int>(expense)];
}

}  // namespace

void wait_in_spending_scopes(const Device& device) {
  waited_for = device;
}

SpendingScope::SpendingScope(Expense expense, Waits waits) : expense_(expense), waits_(waits), outer_(innermost) {
  wait(waits_);
  innermost = this;
  start_ = Clock::now();
}

SpendingScope::~SpendingScope() {
  wait(waits_);
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  Spending::Item& item = spent.items[name_of(expense_)];
  item.seconds += seconds - within_s_;
  ++item.times;
  if (outer_) outer_->within_s_ += seconds;
  innermost = outer_;
}

WholeCall::WholeCall() : before_s_(spent.items[name_of(Expense::calls)].seconds) {}

WholeCall::~WholeCall() {
  const double seconds = spent.items[name_of(Expense::calls)].seconds - before_s_;
  spent.fastest_call_s = spent.fastest_call_s > 0 ? std::min(spent.fastest_call_s, seconds) : seconds;
}

Spending take_spending() {
  return std::exchange(spent, {});
}

}  // namespace attnbench
