#include "harness/worker/gpu_monitor.hpp"

#include <array>
#include <chrono>
#include <utility>

namespace attnbench {

namespace {

/// The sensors change every 20 to 100 ms, the reasons faster; a reading costs the driver some 100 us.
constexpr std::chrono::milliseconds kBetweenReadings{5};

struct Reason {
  uint64_t bit;
  const char* name;
  bool slowdown;
};
constexpr std::array kReasons = {Reason{0x02, "applications_clocks", false}, Reason{0x04, "sw_power_cap", false},
                                 Reason{0x08, "hw_slowdown", true},          Reason{0x10, "sync_boost", false},
                                 Reason{0x20, "sw_thermal", true},           Reason{0x40, "hw_thermal", true},
                                 Reason{0x80, "hw_power_brake", true},       Reason{0x100, "display_clocks", false}};

}  // namespace

std::set<std::string> throttle_names(uint64_t reasons) {
  std::set<std::string> names;
  for (const Reason& reason : kReasons)
    if (reasons & reason.bit) names.insert(reason.name);
  return names;
}

bool is_slowdown(uint64_t reasons) {
  for (const Reason& reason : kReasons)
    if (reason.slowdown && (reasons & reason.bit)) return true;
  return false;
}

GpuMonitor::GpuMonitor(const std::string& pci_bus_id) : nvml_(NvmlDevice::open(pci_bus_id)) {
  if (nvml_) thread_ = std::thread([this] { watch(); });
}

GpuMonitor::~GpuMonitor() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

Readings GpuMonitor::take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(readings_, {});
}

void GpuMonitor::watch() {
  std::unique_lock lock(mutex_);
  while (!ended_) {
    lock.unlock();
    const Readings reading = read();
    lock.lock();
    readings_.add(reading);
    wake_.wait_for(lock, kBetweenReadings, [this] { return ended_; });
  }
}

Readings GpuMonitor::read() const {
  Readings readings;
  if (const auto power = nvml_->power_w()) readings.power_w.push_back(*power);
  if (const auto temperature = nvml_->temperature_c()) readings.temperature_c.push_back(*temperature);
  if (const auto clock = nvml_->sm_mhz()) readings.sm_mhz.push_back(*clock);
  if (const auto reasons = nvml_->throttle_reasons()) {
    readings.throttle = throttle_names(*reasons);
    readings.slowed = is_slowdown(*reasons);
  }
  return readings;
}

}  // namespace attnbench
