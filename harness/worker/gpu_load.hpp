// Work for a GPU that has nothing to do with any result. No LibTorch.
#pragma once

#include <cstdint>
#include <memory>

namespace attnbench {

/// Keeps one thread of the GPU's on this stream (cudaStream_t) for so long; what is queued behind it waits. Returns at once.
/// Throws std::runtime_error where CUDA refuses.
void delay_gpu_stream(void* stream, int64_t microseconds);

/// A stream of its own, on which half of the multiprocessors read and write memory of its own.
class GpuLoad {
 public:
  /// On the current device. Throws std::runtime_error where CUDA refuses.
  GpuLoad();
  /// Waits until its stream is empty.
  ~GpuLoad();
  GpuLoad(const GpuLoad&) = delete;
  GpuLoad& operator=(const GpuLoad&) = delete;

  /// Queues some milliseconds of work unless the stream is busy. Returns at once.
  void top_up();

 private:
  struct Resources;
  std::unique_ptr<Resources> resources_;
};

}  // namespace attnbench
