#include "harness/attention/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include <ATen/Parallel.h>

#ifndef _OPENMP
#error "at::parallel_for is a plain loop where its caller is compiled without -fopenmp"
#endif

namespace attnbench {
namespace {

/// While it lives, LibTorch runs every operation of the threads that called enter() on that thread alone.
class OneThreadPerPiece {
 public:
  OneThreadPerPiece() : threads_(at::get_num_threads()) {}
  ~OneThreadPerPiece() { at::set_num_threads(threads_); }
  void enter() const { at::set_num_threads(1); }

 private:
  int threads_;
};

void for_each_in_parallel(int64_t count, const std::function<void(int64_t)>& body) {
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const OneThreadPerPiece one_thread;
  const auto work = [&] {
    one_thread.enter();
    for (int64_t i = next++; i < count; i = next++) {
      try {
        body(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    }
  };
  const int64_t threads = std::min<int64_t>(count, std::max(1u, std::thread::hardware_concurrency()));
  std::vector<std::jthread> helpers;
  for (int64_t t = 1; t < threads; ++t) helpers.emplace_back(work);
  work();
  helpers.clear();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace

void for_each_piece(c10::Device device, int64_t count, const std::function<void(int64_t)>& body) {
  if (device.is_cpu()) return for_each_in_parallel(count, body);
  for (int64_t i = 0; i < count; ++i) body(i);
}

void in_stretches(int64_t count, int64_t least, const std::function<void(int64_t, int64_t)>& body) {
  at::parallel_for(0, count, least, [&](int64_t begin, int64_t end) { body(begin, end); });
}

}  // namespace attnbench
