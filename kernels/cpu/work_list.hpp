// Shares out tasks among workers: each takes the next number from a counter until none is left, so the list is worked
// off in its order, whatever the number of workers. Kernels put the longest tasks first, and their results must not
// depend on who computes what.
#pragma once

#include <atomic>
#include <cstdint>

#include "kernels/flash_varlen.hpp"

namespace attnbench::flash_varlen::cpu {

/// Runs task(number, worker) once for each number in [0, count).
template <class Task>
void work_off(int64_t count, int workers, const ParallelFor& parallel, const Task& task) {
  if (count == 0) return;
  std::atomic<int64_t> next{0};
  parallel(workers, [&](int worker) {
    for (int64_t number = next++; number < count; number = next++) task(number, worker);
  });
}

}  // namespace attnbench::flash_varlen::cpu
