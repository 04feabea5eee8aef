// The watching allocator of a GPU: LibTorch's caching allocator with BlockLedger's guards around its blocks.
#include <algorithm>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <ATen/Context.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/cuda/CUDAPluggableAllocator.h>

#include "harness/worker/block_ledger.hpp"
#include "harness/worker/cuda_device.hpp"
#include "harness/worker/gpu_guards.hpp"

namespace attnbench {

namespace {

namespace caching = c10::cuda::CUDACachingAllocator;
namespace pluggable = torch::cuda::CUDAPluggableAllocator;

/// Looks count on the GPU, each into a slot of its own. Slots lie in the host's memory, where the GPU writes only what has
/// changed: who has waited for it reads them without a copy.
class DeviceMemory final : public BlockMemory {
 public:
  DeviceMemory() {
    void* slots = nullptr;
    C10_CUDA_CHECK(cudaHostAlloc(&slots, kSlots * sizeof(ChangedGuards), cudaHostAllocMapped | cudaHostAllocPortable));
    slots_ = static_cast<ChangedGuards*>(slots);
    std::fill_n(slots_, kSlots, ChangedGuards{});
  }

  /// On the stream that LibTorch allocates for: its user's work comes behind it.
  void guard(const GuardedBlock& block, unsigned char fill) override {
    write_gpu_guards(block, fill, c10::cuda::getCurrentCUDAStream().stream());
  }

  void look(std::span<const GuardedBlock> blocks) override {
    while (!blocks.empty()) {
      const std::span<const GuardedBlock> now = blocks.first(std::min(blocks.size(), kMostGuardedAtOnce));
      if (used_ + now.size() > kSlots) collect();
      look_at_gpu_guards(now, slots_ + used_, c10::cuda::getCurrentCUDAStream().stream());
      used_ += now.size();
      blocks = blocks.subspan(now.size());
    }
  }

  std::vector<ChangedGuards> take_changes() override {
    collect();
    C10_CUDA_CHECK(cudaGetLastError());
    return std::exchange(changes_, {});
  }

 private:
  static constexpr size_t kSlots = 4096;

  /// A device that failed changed nothing that could be told: who waits for it next says so.
  void collect() {
    if (used_ == 0) return;
    cudaDeviceSynchronize();  // looks are on the streams of those who gave their blocks back
    changes_.insert(changes_.end(), slots_, slots_ + used_);
    std::fill_n(slots_, used_, ChangedGuards{});
    used_ = 0;
  }

  ChangedGuards* slots_ = nullptr;  ///< never freed, as the allocator is not
  size_t used_ = 0;
  std::vector<ChangedGuards> changes_;
};

struct Watch {
  caching::CUDAAllocator* wrapped = nullptr;
  BlockLedger ledger{std::make_unique<DeviceMemory>()};
};
Watch* watch = nullptr;  // never destroyed, since tensors may outlive main()

void* allocate(size_t bytes, int, cudaStream_t stream) {
  if (bytes == 0) return nullptr;
  if (memory_mode() == MemoryMode::off) return watch->wrapped->raw_alloc_with_stream(bytes, stream);
  return watch->ledger.enter(watch->wrapped->raw_alloc_with_stream(BlockLedger::bytes_with_guards(bytes), stream), bytes);
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
