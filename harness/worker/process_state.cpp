#include "harness/worker/process_state.hpp"

#include <atomic>

#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "harness/worker/every_thread.hpp"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace attnbench {
namespace {

#ifdef __x86_64__
constexpr unsigned kPastExceptions = 0x3f;
unsigned arithmetic() {
  return _mm_getcsr() & ~kPastExceptions;
}
void set_arithmetic(unsigned bits) {
  _mm_setcsr(bits);
}
#else
unsigned arithmetic() {
  return 0;
}
void set_arithmetic(unsigned) {}
#endif

/// Gives every thread of LibTorch's pool, the calling one among them, this arithmetic; how many had another one.
int set_arithmetic_of_pool(unsigned bits) {
  std::atomic<int> others = 0;
  on_every_thread([&] {
    if (arithmetic() == bits) return;
    ++others;
    set_arithmetic(bits);
  });
  return others;
}

}  // namespace

ProcessState::ProcessState()
    : threads_(at::get_num_threads()), records_gradients_(c10::GradMode::is_enabled()), arithmetic_(arithmetic()) {}

std::string ProcessState::restore() const {
  std::string left;
  if (const int threads = at::get_num_threads(); threads != threads_) {
    left = fmt::format("left {} thread{} to LibTorch, which had {}", threads, threads == 1 ? "" : "s", threads_);
    at::set_num_threads(threads_);
  }
  if (c10::GradMode::is_enabled() != records_gradients_) {
    left = "left the recording of gradients switched " + std::string(records_gradients_ ? "off" : "on");
    c10::GradMode::set_enabled(records_gradients_);
  }
  if (const int others = set_arithmetic_of_pool(arithmetic_); others > 0)
    left = fmt::format("left the processor with another rounding, or another treatment of subnormals, in {} of {} threads",
                       others, threads_);
  return left;
}

}  // namespace attnbench
