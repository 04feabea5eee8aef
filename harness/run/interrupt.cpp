#include "harness/run/interrupt.hpp"

#include <atomic>
#include <csignal>

namespace attnbench {
namespace {

std::atomic<int> caught_signal = 0;  // read by every thread that waits for a worker
static_assert(std::atomic<int>::is_always_lock_free);

void remember(int signal) {
  caught_signal = signal;
}

}  // namespace

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = remember;
  action.sa_flags = SA_RESETHAND;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

void throw_if_interrupted() {
  if (caught_signal != 0) throw Interrupted(caught_signal);
}

}  // namespace attnbench
