// What CUDA says about a GPU, for measuring on it and for the environment of a run.
#pragma once

#include <cstddef>
#include <string>

namespace attnbench {

struct GpuProperties {
  std::string name;
  std::string pci_bus_id;  ///< "0000:3b:00.0": how the driver's management library (NVML) knows it
  int multiprocessors = 0;
  size_t l2_bytes = 0, memory_bytes = 0;
  int runtime_version = 0, driver_version = 0;  ///< 13000 = CUDA 13.0: built with, and at most supported by the driver
};

/// Throws std::runtime_error with a sentence in a build without CUDA, and where CUDA refuses.
GpuProperties gpu_properties(int index);

}  // namespace attnbench
