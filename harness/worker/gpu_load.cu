#include "harness/worker/gpu_load.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

namespace attnbench {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kFloats = int64_t{1} << 23;  // 32 MiB: some of it is in the L2 cache, most is not
constexpr uint64_t kWork_ns = 3'000'000;

__device__ uint64_t now_ns() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
  return ns;
}

__global__ void wait_ns(uint64_t ns) {
  const uint64_t begin = now_ns();
  while (now_ns() - begin < ns) {
  }
}

/// Reads and writes its part of `memory` until the time is over.
__global__ void churn(float* memory, int64_t floats, uint64_t ns) {
  const uint64_t begin = now_ns();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  while (now_ns() - begin < ns)
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < floats && now_ns() - begin < ns; i += step)
      memory[i] = memory[i] * 0.5f + 1.0f;
}

void check_load(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else LibTorch, which shares the runtime, would find it in its next check
  throw std::runtime_error(std::string("CUDA, ") + what + ": " + cudaGetErrorString(error));
}

}  // namespace

void delay_gpu_stream(void* stream, int64_t microseconds) {
  wait_ns<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<uint64_t>(microseconds) * 1000);
  check_load(cudaGetLastError(), "delaying a stream");
}

struct GpuLoad::Resources {
  ~Resources() {
    if (stream) {
      cudaStreamSynchronize(stream);
      cudaStreamDestroy(stream);
    }
    cudaFree(memory);
  }
  cudaStream_t stream = nullptr;
  float* memory = nullptr;
  int blocks = 1;
};

GpuLoad::GpuLoad() : resources_(std::make_unique<Resources>()) {
  Resources& r = *resources_;
  int device = 0, processors = 0;
  check_load(cudaGetDevice(&device), "current device");
  check_load(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "number of multiprocessors");
  r.blocks = std::max(1, processors / 2);
  check_load(cudaStreamCreateWithFlags(&r.stream, cudaStreamNonBlocking), "stream for a load");
  check_load(cudaMalloc(&r.memory, kFloats * sizeof(float)), "memory for a load");
  check_load(cudaMemsetAsync(r.memory, 0, kFloats * sizeof(float), r.stream), "clearing memory for a load");
}

GpuLoad::~GpuLoad() = default;

void GpuLoad::top_up() {
  const Resources& r = *resources_;
  const cudaError_t state = cudaStreamQuery(r.stream);
  if (state == cudaErrorNotReady) {
    cudaGetLastError();  // no error: busy
    return;
  }
  check_load(state, "asking whether a stream is busy");
  churn<<<r.blocks, kThreads, 0, r.stream>>>(r.memory, kFloats, kWork_ns);
  check_load(cudaGetLastError(), "launching a load");
}

}  // namespace attnbench
