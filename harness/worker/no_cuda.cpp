// In place of cuda_device.cpp, gpu_disturbance.cpp, memory_cuda.cpp, gpu_properties.cpp and gpu_sampler.cu where no CUDA
// compiler, or a LibTorch without CUDA, was found.
#include "harness/run/errors.hpp"
#include "harness/worker/block_ledger.hpp"
#include "harness/worker/cuda_device.hpp"
#include "harness/worker/disturbance.hpp"
#include "harness/worker/gpu_properties.hpp"
#include "harness/worker/sampler.hpp"

namespace attnbench {

namespace {
constexpr auto kNoCuda = "--device cuda: this build has no CUDA (it needs nvcc and a LibTorch with CUDA); --device cpu is there";
}

Device find_cuda_device(int) {
  throw UsageError(kNoCuda);
}
int64_t available_cuda_bytes(int) {
  throw UsageError(kNoCuda);
}
void check_context(const Device&) {}
void wait_for_device() {}
void watch_cuda_memory() {
  throw UsageError(kNoCuda);
}
BlockLedger* cuda_ledger() {
  return nullptr;
}
GpuProperties gpu_properties(int) {
  throw UsageError(kNoCuda);
}
std::unique_ptr<Sampler> make_gpu_sampler(int, void*) {
  throw UsageError(kNoCuda);
}
std::unique_ptr<Disturbance> make_gpu_disturbance(const Device&) {
  throw UsageError(kNoCuda);
}

}  // namespace attnbench
