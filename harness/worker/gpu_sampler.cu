// One sample on a GPU:
//   overwrite twice the L2 cache        the operation's first call finds nothing in it
//   hold                                one thread waits until the host says that everything below is queued, so that the gaps
//                                       between the host's launches are not timed
//   stamp, event, the calls, event, stamp
// and then the host lets go and waits. The time is that between the events.
//
// A call that waits for the device (a synchronisation, some allocations) would wait for the hold, and the host would never let
// go: the hold ends by itself after kHoldLimit_ns, and the sample says so. More launches than the queue of a stream takes
// (1024) do the same, hence the small Grain::max_calls.
//
// The stamps read an SM's cycle counter and the time of the whole GPU. The counters of two SMs have nothing to do with each
// other: the clock is known where both stamps ran on the same SM, as blocks of an empty GPU mostly do.
#include <cuda_runtime.h>

#include <exception>
#include <stdexcept>
#include <string>

#include "harness/worker/gpu_monitor.hpp"
#include "harness/worker/gpu_properties.hpp"
#include "harness/worker/sampler.hpp"

namespace attnbench {
namespace {

constexpr uint64_t kHoldLimit_ns = 20'000'000;  // the host queues an operation in less than 1 ms

struct Stamp {
  uint64_t ns;
  int64_t cycles;
  uint32_t sm;
};

/// What host and device share: in the host's memory, which both can reach while a kernel runs.
struct Shared {
  uint64_t released;  ///< ticket of the last hold that was let go
  uint64_t expired;   ///< ticket of the last hold that ended by itself
  Stamp stamps[2];
};

__device__ uint64_t global_ns() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
  return ns;
}

__global__ void hold(volatile Shared* shared, uint64_t ticket) {
  const uint64_t end = global_ns() + kHoldLimit_ns;
  while (shared->released != ticket) {
    if (global_ns() < end) continue;
    shared->expired = ticket;
    return;
  }
}

/// The timer of the GPU ticks coarsely: both clocks are read at the start of a tick.
__global__ void stamp(Stamp* out) {
  const uint64_t before = global_ns();
  uint64_t now;
  do {
    now = global_ns();
  } while (now == before);
  out->cycles = clock64();
  out->ns = now;
  asm volatile("mov.u32 %0, %smid;" : "=r"(out->sm));
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else LibTorch, which shares the runtime, would find it in its next check
  throw std::runtime_error(std::string("CUDA, ") + what + ": " + cudaGetErrorString(error));
}

/// Device and host memory and the events of one sampler.
class Resources {
 public:
  Resources() = default;
  void allocate(size_t scratch_bytes) {
    check(cudaMalloc(&scratch, scratch_bytes), "memory to overwrite the L2 cache with");
    check(cudaHostAlloc(&shared, sizeof *shared, cudaHostAllocMapped), "memory shared with the host");
    *shared = {};
    check(cudaEventCreate(&start), "event");
    check(cudaEventCreate(&stop), "event");
  }
  ~Resources() {
    if (stop) cudaEventDestroy(stop);
    if (start) cudaEventDestroy(start);
    cudaFreeHost(shared);
    cudaFree(scratch);
  }
  Resources(const Resources&) = delete;

  void* scratch = nullptr;
  Shared* shared = nullptr;
  cudaEvent_t start = nullptr, stop = nullptr;
};

class GpuSampler final : public Sampler {
 public:
  GpuSampler(const GpuProperties& device, cudaStream_t stream)
      : stream_(stream), scratch_bytes_(2 * device.l2_bytes), monitor_(device.pci_bus_id) {
    resources_.allocate(scratch_bytes_);
    sample([] {}, 1, false);  // what it launches is loaded before a hold is in the way
  }

  Sample sample(const std::function<void()>& call, int64_t calls, bool held) override {
    Shared& shared = *resources_.shared;
    check(cudaMemsetAsync(resources_.scratch, int(ticket_ & 0xff), scratch_bytes_, stream_), "overwriting the L2 cache");
    if (!held) settle();  // else the host would queue part of the operation meanwhile, and gain the time that it took
    {
      const Release release(*this);
      if (held) hold<<<1, 1, 0, stream_>>>(&shared, ticket_);
      stamp<<<1, 1, 0, stream_>>>(&shared.stamps[0]);
      check(cudaEventRecord(resources_.start, stream_), "event before the operation");
      for (int64_t i = 0; i < calls; ++i) call();
      check(cudaEventRecord(resources_.stop, stream_), "event after the operation");
      stamp<<<1, 1, 0, stream_>>>(&shared.stamps[1]);
      check(cudaGetLastError(), "launching a sample");
    }
    check(cudaStreamSynchronize(stream_), "running the operation");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, resources_.start, resources_.stop), "time between the events");
    const bool expired = held && shared.expired == ticket_ - 1;
    return {.us = 1e3 * double(ms), .sm_mhz = sm_mhz(), .held = held && !expired, .hold_expired = expired};
  }

  void settle() override { check(cudaDeviceSynchronize(), "an operation before this one"); }
  Readings take_readings() override { return monitor_.take(); }
  Grain grain() const override { return {50e-6, 16}; }
  bool is_gpu() const override { return true; }

 private:
  /// Lets the hold go and, when an exception comes by, waits until nothing runs.
  class Release {
   public:
    explicit Release(GpuSampler& sampler) : sampler_(sampler), exceptions_(std::uncaught_exceptions()) {}
    ~Release() {
      *static_cast<volatile uint64_t*>(&sampler_.resources_.shared->released) = sampler_.ticket_++;
      if (std::uncaught_exceptions() > exceptions_) cudaStreamSynchronize(sampler_.stream_);
    }
    Release(const Release&) = delete;

   private:
    GpuSampler& sampler_;
    const int exceptions_;
  };

  double sm_mhz() const {
    const auto& [first, last] = resources_.shared->stamps;
    if (first.sm != last.sm || last.ns <= first.ns) return std::numeric_limits<double>::quiet_NaN();
    return 1e3 * double(last.cycles - first.cycles) / double(last.ns - first.ns);
  }

  const cudaStream_t stream_;
  const size_t scratch_bytes_;
  Resources resources_;
  GpuMonitor monitor_;
  uint64_t ticket_ = 1;  ///< of the next hold
};

}  // namespace

std::unique_ptr<Sampler> make_gpu_sampler(int device, void* stream) {
  check(cudaSetDevice(device), "choosing the device");
  return std::make_unique<GpuSampler>(gpu_properties(device), static_cast<cudaStream_t>(stream));
}

}  // namespace attnbench
