// Watches a GPU's sensors from a thread of its own while operations are timed.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>

#include "harness/worker/nvml.hpp"
#include "harness/worker/sampler.hpp"

namespace attnbench {

/// Names of the reasons for a lower clock, from NVML's bits. That nothing runs is none.
std::set<std::string> throttle_names(uint64_t reasons);

/// Hardware or heat holds the clock down. A power cap does not count: under full load it is the normal state.
bool is_slowdown(uint64_t reasons);

class GpuMonitor {
 public:
  /// Reads nothing where NVML does not know the device.
  explicit GpuMonitor(const std::string& pci_bus_id);
  ~GpuMonitor();
  GpuMonitor(const GpuMonitor&) = delete;

  /// What was read since the last take(); where that was shorter than the time between two readings it may be nothing.
  Readings take();

 private:
  void watch();
  Readings read() const;

  const std::optional<NvmlDevice> nvml_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool ended_ = false;
  Readings readings_;
  std::thread thread_;
};

}  // namespace attnbench
