// Work on rows of numbers that is written once and runs on a CPU and on a GPU: a step is a struct of pointers whose call works on
// one row, together with the other threads of its team. On a GPU a team is a block of threads; on a CPU it is one thread of
// many, each with rows of its own.
// A file that launches steps is compiled as CUDA where the build has a GPU's side, else as C++.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>

#ifdef __CUDACC__
#include <string>

#include <c10/cuda/CUDAStream.h>

#define ATTNBENCH_ON_BOTH __host__ __device__
#else
#define ATTNBENCH_ON_BOTH
#endif

#include "harness/attention/parallel.hpp"

namespace attnbench {

/// NaN where one of them is. Without branches, so that loops over it are vectorised.
template <typename T>
ATTNBENCH_ON_BOTH T larger(T a, T b) {
  const T of_numbers = a > b ? a : b;
  return a != a ? a : of_numbers;
}

/// The threads that work on one row. All of them make the same calls, in the same order.
class RowTeam {
 public:
  static constexpr int kMostThreads = 256;

  /// f(i) for every i in [0, count), spread over the threads.
  template <typename F>
  ATTNBENCH_ON_BOTH void each(int64_t count, F f) const {
#ifdef __CUDA_ARCH__
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) f(i);
#else
    for (int64_t i = 0; i < count; ++i) f(i);
#endif
  }

  /// Of all threads' numbers; threads wait for each other here, and nowhere else. On a GPU pairwise, so in an order of its own.
  ATTNBENCH_ON_BOTH double sum(double x) const {
    return combined(x, [](double a, double b) { return a + b; });
  }
  /// NaN where one of them is.
  ATTNBENCH_ON_BOTH double max(double x) const {
    return combined(x, [](double a, double b) { return larger(a, b); });
  }

  /// Of integers modulo 2^64.
  ATTNBENCH_ON_BOTH uint64_t wrapping_sum(uint64_t x) const {
    return combined(x, [](uint64_t a, uint64_t b) { return a + b; });
  }

  /// Whether this thread is the one that writes what the row has one of.
  ATTNBENCH_ON_BOTH bool writes() const {
#ifdef __CUDA_ARCH__
    return threadIdx.x == 0;
#else
    return true;
#endif
  }

 private:
  template <typename T, typename F>
  ATTNBENCH_ON_BOTH T combined(T x, [[maybe_unused]] F both) const {
#ifdef __CUDA_ARCH__
    __shared__ T of_warps[kMostThreads / 32];
    for (int lane = 16; lane > 0; lane /= 2) x = both(x, __shfl_xor_sync(0xffffffffu, x, lane));
    __syncthreads();  // who still reads what the last call left there
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = of_warps[0];
    for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) x = both(x, of_warps[warp]);
#endif
    return x;
  }
};

#ifdef __CUDACC__
/// On a multiprocessor: a step gets no more registers than let so many fit.
constexpr int kTeamsAtOnce = 4;

template <typename Step>
__global__ void __launch_bounds__(RowTeam::kMostThreads, kTeamsAtOnce) run_on_rows(const Step step) {
  step(RowTeam(), blockIdx.x);
}
#endif

/// step(team, row) for every row in [0, rows), in any order; `width`: elements of a row. On a GPU on LibTorch's current stream,
/// which nobody waits for here. Throws std::runtime_error where CUDA refuses, std::length_error for more rows than it can launch.
template <typename Step>
void for_each_row(bool on_gpu, int64_t rows, int64_t width, const Step& step) {
#ifdef __CUDACC__
  if (on_gpu) {
    if (rows == 0) return;
    if (rows > INT32_MAX) throw std::length_error("work on rows on the GPU: more rows than one launch has");
    int threads = 32;
    while (threads < RowTeam::kMostThreads && threads < width) threads *= 2;
    run_on_rows<<<static_cast<unsigned>(rows), threads, 0, c10::cuda::getCurrentCUDAStream()>>>(step);
    if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess)
      throw std::runtime_error(std::string("work on rows on the GPU: ") + cudaGetErrorString(status));
    return;
  }
#else
  if (on_gpu) throw std::logic_error("work on rows on the GPU: its file was compiled without CUDA");
#endif
  constexpr int64_t kElements = 1 << 14;  // of a stretch that is worth a thread
  in_stretches(rows, width < kElements ? kElements / (width > 0 ? width : 1) : 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) step(RowTeam(), row);
  });
}

}  // namespace attnbench
