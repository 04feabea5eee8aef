// The watching allocator of a GPU: LibTorch's caching allocator with BlockLedger's guards around its blocks.
#include <memory>

#include <ATen/Context.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <torch/csrc/cuda/CUDAPluggableAllocator.h>

#include "harness/worker/block_ledger.hpp"
#include "harness/worker/cuda_device.hpp"

namespace attnbench {

namespace {

namespace caching = c10::cuda::CUDACachingAllocator;
namespace pluggable = torch::cuda::CUDAPluggableAllocator;

// Blocking copies are ordered after the kernels that were launched before, on the one stream that the worker uses.
const BlockMemory kDeviceMemory{
    [](void* host, const void* block, size_t bytes) { C10_CUDA_CHECK(cudaMemcpy(host, block, bytes, cudaMemcpyDeviceToHost)); },
    [](void* block, const void* host, size_t bytes) { C10_CUDA_CHECK(cudaMemcpy(block, host, bytes, cudaMemcpyHostToDevice)); },
    [](void* block, int byte, size_t bytes) { C10_CUDA_CHECK(cudaMemset(block, byte, bytes)); },
};

struct Watch {
  caching::CUDAAllocator* wrapped = nullptr;
  BlockLedger ledger{kDeviceMemory};
};
Watch* watch = nullptr;  // never destroyed, since tensors may outlive main()

void* allocate(size_t bytes, int, cudaStream_t stream) {
  if (bytes == 0) return nullptr;
  const MemoryMode mode = memory_mode();
  void* const allocated = watch->wrapped->raw_alloc_with_stream(BlockLedger::bytes_with_guards(bytes, mode), stream);
  return mode == MemoryMode::off ? allocated : watch->ledger.enter(allocated, bytes, mode);
}

void release(void* data, size_t, int, cudaStream_t) {
  if (data) watch->wrapped->raw_delete(watch->ledger.leave(data));
}

}  // namespace

BlockLedger* cuda_ledger() {
  return watch ? &watch->ledger : nullptr;
}

void watch_cuda_memory() {
  if (watch) return;
  watch = new Watch{caching::get()};
  const auto watching = pluggable::createCustomAllocator(allocate, release);
  auto& settings = static_cast<pluggable::CUDAPluggableAllocator&>(*watching);
  settings.set_init_fn([](int devices) { watch->wrapped->init(devices); });
  settings.set_reset_fn([] { watch->wrapped->emptyCache(); });
  pluggable::changeCurrentAllocator(watching);
  at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);  // calls what set_init_fn was given
}

int64_t available_cuda_bytes(int index) {
  size_t free = 0, total = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  const auto stats = watch->wrapped->getDeviceStats(static_cast<c10::DeviceIndex>(index));
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return int64_t(free) + stats.reserved_bytes[kAll].current - stats.allocated_bytes[kAll].current;  // what it caches is free
}

}  // namespace attnbench
