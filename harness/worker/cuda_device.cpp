#include "harness/worker/cuda_device.hpp"

#include <stdexcept>

#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "harness/run/errors.hpp"

namespace attnbench {

namespace {

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

int count_devices() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();  // else the next check would report it again
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver > 0)
      throw std::runtime_error(
          fmt::format("--device cuda: the driver supports CUDA {}, this build needs CUDA {}: a newer driver helps",
                      version_text(driver), version_text(runtime)));
  }
  return status == cudaSuccess ? count : 0;
}

}  // namespace

Device find_cuda_device(int index) {
  const int count = count_devices();
  const std::string asked = index == 0 ? "cuda" : fmt::format("cuda:{}", index);
  if (count == 0) throw UsageError(fmt::format("--device {}: there is no GPU here; --device cpu is there", asked));
  if (index < 0 || index >= count)
    throw UsageError(
        fmt::format("--device cuda:{}: there is no such GPU; there are {}: cuda:0 to cuda:{}", index, count, count - 1));
  cudaDeviceProp properties{};
  cudaError_t status = cudaGetDeviceProperties(&properties, index);
  if (status == cudaSuccess) status = cudaSetDevice(index);
  if (status == cudaSuccess) status = cudaFree(nullptr);  // makes the context
  if (status != cudaSuccess)
    throw std::runtime_error(
        fmt::format("--device cuda:{}: {} cannot be used: {}", index, properties.name, cudaGetErrorString(status)));
  c10::cuda::set_device(static_cast<c10::DeviceIndex>(index));
  return {"cuda", index, 10 * properties.major + properties.minor, properties.name};
}

void wait_for_device() {
  cudaDeviceSynchronize();  // an error stays for check_context
}

void check_context(const Device& device) {
  if (device.kind != "cuda") return;
  const cudaError_t status = cudaDeviceSynchronize();
  cudaGetLastError();  // an error that was no more than a refused launch is forgotten here
  if (status != cudaSuccess)
    throw CudaContextFailed(
        fmt::format("the CUDA context failed: {} ({})", cudaGetErrorString(status), cudaGetErrorName(status)));
}

}  // namespace attnbench
