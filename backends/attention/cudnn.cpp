#include "backends/attention/cudnn.hpp"

#include <ATen/detail/CUDAHooksInterface.h>
#include <fmt/format.h>
#include <torch/version.h>

#include "backends/attention/sdpa.hpp"

namespace attnbench {

std::string cudnn_version(const Device& device) {
  if (device.kind != "cuda") return TORCH_VERSION;
  const long version = at::detail::getCUDAHooks().versionRuntimeCuDNN();
  return fmt::format("{} cudnn {}.{}.{}", TORCH_VERSION, version / 10000, version / 100 % 100, version % 100);
}

int64_t cudnn_max_head_dim(const Device& device) {
  return device.sm == 90 ? 256 : 128;
}

Profile cudnn_profile() {
  Profile profile = sdpa_flash_profile();
  profile.scales_ds = true;
  return profile;
}

}  // namespace attnbench
