// The watching allocator of a GPU: LibTorch's caching allocator with BlockLedger's guards around its blocks.
#include <memory>
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

/// Looks count on the GPU, each into a slot of its own.
class DeviceMemory final : public BlockMemory {
 public:
  explicit DeviceMemory(caching::CUDAAllocator& allocator) : allocator_(allocator) {}

  /// On the stream that LibTorch allocates for: its user's work comes behind it.
  void guard(char* block, size_t bytes) override {
    write_gpu_guards(block, bytes, kGuardBytes, kGuardPattern, c10::cuda::getCurrentCUDAStream().stream());
  }

  void look(char* block, size_t bytes) override {
    if (looks_ == kSlots) collect();
    if (!slots_) make_slots();
    look_at_gpu_guards(block, bytes, kGuardBytes, kGuardPattern, slots_ + 2 * looks_++,
                       c10::cuda::getCurrentCUDAStream().stream());
  }

  std::vector<ChangedGuards> take_changes() override {
    collect();
    C10_CUDA_CHECK(cudaGetLastError());
    return std::exchange(changes_, {});
  }

 private:
  static constexpr size_t kSlots = 4096, kSlotBytes = 2 * sizeof(uint32_t);

  void make_slots() {
    slots_ = static_cast<uint32_t*>(allocator_.raw_alloc(kSlots * kSlotBytes));
    cudaMemset(slots_, 0, kSlots * kSlotBytes);
    cudaDeviceSynchronize();  // looks on other streams do not wait for the default one
  }

  /// A device that failed changed nothing that could be told: who waits for it next says so.
  void collect() {
    if (looks_ == 0) return;
    std::vector<uint32_t> counts(2 * looks_);
    cudaDeviceSynchronize();
    cudaMemcpy(counts.data(), slots_, looks_ * kSlotBytes, cudaMemcpyDeviceToHost);
    cudaMemset(slots_, 0, looks_ * kSlotBytes);
    cudaDeviceSynchronize();
    for (size_t i = 0; i < looks_; ++i) changes_.push_back({counts[2 * i], counts[2 * i + 1]});
    looks_ = 0;
  }

  caching::CUDAAllocator& allocator_;
  uint32_t* slots_ = nullptr;  ///< never freed, as the allocator is not
  size_t looks_ = 0;           ///< slots in use
  std::vector<ChangedGuards> changes_;
};

struct Watch {
  caching::CUDAAllocator* wrapped = nullptr;
  BlockLedger ledger{std::make_unique<DeviceMemory>(*wrapped)};
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
