#include "harness/worker/disturbance.hpp"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "harness/worker/cuda_device.hpp"
#include "harness/worker/gpu_load.hpp"

namespace attnbench {
namespace {

/// Longer than the host takes to queue a backward, with the guards of its memory.
constexpr int64_t kDelay_us = 500;

class BusyGpu final : public Disturbance {
 public:
  /// What was queued on other streams, the inputs among it, is there before the first call.
  explicit BusyGpu(const Device& device)
      : guard_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, static_cast<c10::DeviceIndex>(device.index))) {
    check_context(device);
  }

  /// The guard goes back to the stream before, which knows nothing of what this one has under way.
  ~BusyGpu() override { guard_.current_stream().synchronize(); }

  Condition before_call(int64_t) override { return {Relation::concurrency, "with another stream at work"}; }

  std::function<void()> delay() override {
    return [this] {
      const c10::cuda::CUDAStream stream = guard_.current_stream();
      stream.synchronize();  // what is to be late holds NaN by now
      load_.top_up();
      delay_gpu_stream(stream.stream(), kDelay_us);
    };
  }

 private:
  c10::cuda::CUDAStreamGuard guard_;
  GpuLoad load_;
};

}  // namespace

std::unique_ptr<Disturbance> make_gpu_disturbance(const Device& device) {
  return std::make_unique<BusyGpu>(device);
}

}  // namespace attnbench
