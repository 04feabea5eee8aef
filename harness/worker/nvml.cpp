#include "harness/worker/nvml.hpp"

namespace attnbench {

namespace {

/// nvmlFieldValue_t: one question of many that are asked together.
struct FieldValue {
  unsigned field;
  unsigned scope;
  long long timestamp_us;
  long long latency_us;
  int value_type;
  int error;
  union {
    double d;
    unsigned u;
    unsigned long long ull;
  } value;
};
constexpr unsigned kPowerInstant = 186;  // NVML_FI_DEV_POWER_INSTANT, milliwatts, an unsigned

}  // namespace

std::optional<NvmlDevice> NvmlDevice::open(const std::string& pci_bus_id) {
  NvmlDevice nvml;
  nvml.library_ = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!nvml.library_ || !nvml.call("nvmlInit_v2")) return std::nullopt;
  if (!nvml.call("nvmlDeviceGetHandleByPciBusId_v2", pci_bus_id.c_str(), &nvml.device_)) return std::nullopt;
  return nvml;
}

std::optional<double> NvmlDevice::power_w() const {
  FieldValue power{};
  power.field = kPowerInstant;
  if (!ask("nvmlDeviceGetFieldValues", 1, &power) || power.error != 0) return std::nullopt;
  return power.value.u / 1e3;
}

std::optional<uint64_t> NvmlDevice::throttle_reasons() const {
  unsigned long long reasons = 0;
  return ask("nvmlDeviceGetCurrentClocksThrottleReasons", &reasons) ? std::optional<uint64_t>(reasons) : std::nullopt;
}

}  // namespace attnbench
