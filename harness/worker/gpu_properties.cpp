#include "harness/worker/gpu_properties.hpp"

#include <stdexcept>

#include <cuda_runtime_api.h>

namespace attnbench {

namespace {

void check(cudaError_t error, int index) {
  if (error != cudaSuccess) throw std::runtime_error("CUDA device " + std::to_string(index) + ": " + cudaGetErrorString(error));
}

}  // namespace

GpuProperties gpu_properties(int index) {
  cudaDeviceProp device{};
  check(cudaGetDeviceProperties(&device, index), index);
  char bus_id[32] = {};
  check(cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, index), index);
  GpuProperties properties;
  properties.name = device.name;
  properties.pci_bus_id = bus_id;
  properties.multiprocessors = device.multiProcessorCount;
  properties.l2_bytes = size_t(device.l2CacheSize);
  properties.memory_bytes = device.totalGlobalMem;
  check(cudaRuntimeGetVersion(&properties.runtime_version), index);
  check(cudaDriverGetVersion(&properties.driver_version), index);
  return properties;
}

}  // namespace attnbench
