#include "harness/worker/gpu_environment.hpp"

#include <optional>
#include <string>
#include <vector>

#include <ATen/Context.h>
#include <fmt/format.h>
#include <unistd.h>

#include "harness/worker/gpu_monitor.hpp"
#include "harness/worker/gpu_properties.hpp"
#include "harness/worker/nvml.hpp"

namespace attnbench {

namespace {

using nlohmann::json;

template <class T>
json or_null(const std::optional<T>& value) {
  return value ? json(*value) : json(nullptr);
}

std::optional<double> watts(std::optional<unsigned> milliwatts) {
  return milliwatts ? std::optional(*milliwatts / 1e3) : std::nullopt;
}

/// FNV-1a: tells devices apart without telling which one it is.
std::string hash_of(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const unsigned char byte : text) hash = (hash ^ byte) * 0x100000001b3;
  return fmt::format("{:016x}", hash);
}

/// A text that `function(device, buffer, size)` answers.
std::optional<std::string> text_of(const NvmlDevice& nvml, const char* function) {
  char buffer[128] = {};
  return nvml.ask(function, buffer, unsigned(sizeof buffer)) ? std::optional<std::string>(buffer) : std::nullopt;
}

json driver(const NvmlDevice& nvml) {
  char buffer[128] = {};
  return nvml.call("nvmlSystemGetDriverVersion", buffer, unsigned(sizeof buffer)) ? json(buffer) : json(nullptr);
}

/// What `function(device, int* current, int* pending)` says is in force.
json current_of(const NvmlDevice& nvml, const char* function) {
  int current = 0, pending = 0;
  return nvml.ask(function, &current, &pending) ? json(current != 0) : json(nullptr);
}

/// Since the driver was loaded. NVML numbers: 0 corrected, 1 uncorrected; 0 volatile counters.
json ecc_errors(const NvmlDevice& nvml, int kind) {
  unsigned long long errors = 0;
  return nvml.ask("nvmlDeviceGetTotalEccErrors", kind, 0, &errors) ? json(errors) : json(nullptr);
}

json clocks(const NvmlDevice& nvml) {
  constexpr int kSm = 1, kMemory = 2;
  json clocks = json::object();
  for (const auto& [name, clock] : {std::pair("sm", kSm), std::pair("memory", kMemory)})
    clocks[name] = {{"now", or_null(nvml.unsigned_of("nvmlDeviceGetClockInfo", clock))},
                    {"max", or_null(nvml.unsigned_of("nvmlDeviceGetMaxClockInfo", clock))},
                    {"applications", or_null(nvml.unsigned_of("nvmlDeviceGetApplicationsClock", clock))}};
  return clocks;
}

/// Processes that compute on the GPU besides this one; 0 also where a container hides them.
json other_processes(const NvmlDevice& nvml) {
  struct ProcessInfo {  // nvmlProcessInfo_t
    unsigned pid;
    unsigned long long used_bytes;
    unsigned gpu_instance, compute_instance;
  };
  std::vector<ProcessInfo> processes(256);
  unsigned count = unsigned(processes.size());
  if (!nvml.ask("nvmlDeviceGetComputeRunningProcesses_v3", &count, static_cast<void*>(processes.data()))) return nullptr;
  unsigned others = 0;
  for (unsigned i = 0; i < count; ++i) others += processes[i].pid != unsigned(getpid());
  return others;
}

void add_management(json& gpu, const NvmlDevice& nvml) {
  const auto uuid = text_of(nvml, "nvmlDeviceGetUUID");
  const auto reasons = nvml.throttle_reasons();
  gpu["uuid_hash"] = uuid ? json(hash_of(*uuid)) : json(nullptr);
  gpu["driver"] = driver(nvml);
  gpu["vbios"] = or_null(text_of(nvml, "nvmlDeviceGetVbiosVersion"));
  gpu["pstate"] = or_null(nvml.unsigned_of("nvmlDeviceGetPerformanceState"));
  gpu["persistence"] = or_null(nvml.unsigned_of("nvmlDeviceGetPersistenceMode"));
  gpu["mig"] = current_of(nvml, "nvmlDeviceGetMigMode");
  gpu["ecc"] = {
      {"on", current_of(nvml, "nvmlDeviceGetEccMode")}, {"corrected", ecc_errors(nvml, 0)}, {"uncorrected", ecc_errors(nvml, 1)}};
  gpu["power_limit_w"] = or_null(watts(nvml.unsigned_of("nvmlDeviceGetEnforcedPowerLimit")));
  gpu["power_w"] = or_null(nvml.power_w());
  gpu["clocks_mhz"] = clocks(nvml);
  gpu["throttle"] = reasons ? json(throttle_names(*reasons)) : json(nullptr);
  gpu["temperature_c"] = or_null(nvml.temperature_c());
  gpu["other_processes"] = other_processes(nvml);
}

}  // namespace

json gpu_environment(const Device& device) {
  const GpuProperties cuda = gpu_properties(device.index);
  const auto& hooks = at::detail::getCUDAHooks();
  const auto& context = at::globalContext();
  json gpu = {{"name", cuda.name},
              {"multiprocessors", cuda.multiprocessors},
              {"l2_bytes", cuda.l2_bytes},
              {"memory_bytes", cuda.memory_bytes},
              {"cuda_runtime", cuda.runtime_version},
              {"cuda_driver", cuda.driver_version},
              {"cudnn", hooks.hasCuDNN() ? json(hooks.versionRuntimeCuDNN()) : json(nullptr)},
              {"tf32", {{"cublas", context.allowTF32CuBLAS()}, {"cudnn", context.allowTF32CuDNN()}}}};
  if (const auto nvml = NvmlDevice::open(cuda.pci_bus_id)) add_management(gpu, *nvml);
  return gpu;
}

}  // namespace attnbench
