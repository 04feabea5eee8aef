#include "harness/run/default_device.hpp"

#include <cstdlib>
#include <string_view>

namespace attnbench {

std::string default_device(const std::filesystem::path& dev) {
#ifdef ATTNBENCH_HAS_CUDA
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  const bool hidden = visible && (std::string_view(visible).empty() || std::string_view(visible) == "-1");
  std::error_code ignored;
  for (const char* file : {"nvidia0", "dxg"})  // dxg: the Windows Subsystem for Linux
    if (!hidden && std::filesystem::exists(dev / file, ignored)) return "cuda";
#endif
  return "cpu";
}

}  // namespace attnbench
