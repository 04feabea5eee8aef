// In place of cuda_device.cpp and memory_cuda.cpp where no CUDA compiler, or a LibTorch without CUDA, was found.
#include "harness/run/errors.hpp"
#include "harness/worker/block_ledger.hpp"
#include "harness/worker/cuda_device.hpp"

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
void watch_cuda_memory() {
  throw UsageError(kNoCuda);
}
BlockLedger* cuda_ledger() {
  return nullptr;
}

}  // namespace attnbench
