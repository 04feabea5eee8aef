// One GPU as the driver's management library (NVML) sees it. The library comes with the driver and is opened at run time; a
// machine without it is no error. Its header is in no part of the toolkit that the build needs, so functions are called by name.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <optional>
#include <string>

namespace attnbench {

class NvmlDevice {
 public:
  /// Unset where there is no library, or no such device in it. "0000:3b:00.0"
  static std::optional<NvmlDevice> open(const std::string& pci_bus_id);

  // Unset where the device does not say.
  std::optional<double> sm_mhz() const { return unsigned_of("nvmlDeviceGetClockInfo", kSmClock); }
  std::optional<double> temperature_c() const { return unsigned_of("nvmlDeviceGetTemperature", kGpuSensor); }
  std::optional<double> power_w() const;             ///< now; nvidia-smi's "Power Draw" is the mean of a second
  std::optional<uint64_t> throttle_reasons() const;  ///< bits, as in gpu_monitor.hpp

  /// A number that `function(device, arguments…, unsigned*)` answers.
  template <class... Arguments>
  std::optional<unsigned> unsigned_of(const char* function, Arguments... arguments) const {
    unsigned value = 0;
    return call(function, device_, arguments..., &value) ? std::optional(value) : std::nullopt;
  }

  /// function(device, arguments…) with the types of NVML's header (enums are int, handles void*); false: it is missing or failed.
  template <class... Arguments>
  bool ask(const char* function, Arguments... arguments) const {
    return call(function, device_, arguments...);
  }

  /// Likewise a function that knows no device.
  template <class... Arguments>
  bool call(const char* function, Arguments... arguments) const {
    const auto address = reinterpret_cast<int (*)(Arguments...)>(dlsym(library_, function));
    return address && address(arguments...) == 0;
  }

 private:
  static constexpr int kSmClock = 1, kGpuSensor = 0;

  void* library_ = nullptr;  ///< stays open: threads of the driver may run in it
  void* device_ = nullptr;
};

}  // namespace attnbench
