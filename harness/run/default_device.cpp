#include "harness/run/default_device.hpp"

#include <cstdlib>
#include <string>
#include <string_view>

namespace attnbench {
namespace {

/// nvidia0, nvidia3, … (a container may have any one of them), or what the Windows Subsystem for Linux has instead.
bool is_gpu(const std::string& file) {
  const std::string driver = "nvidia", number = file.starts_with(driver) ? file.substr(driver.size()) : "";
  return file == "dxg" || (!number.empty() && number.find_first_not_of("0123456789") == std::string::npos);
}

}  // namespace

std::string default_device(const std::filesystem::path& dev) {
#ifdef ATTNBENCH_HAS_CUDA
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  const bool hidden = visible && (std::string_view(visible).empty() || std::string_view(visible) == "-1");
  std::error_code ignored;
  for (const auto& file : std::filesystem::directory_iterator(dev, ignored))
    if (!hidden && is_gpu(file.path().filename().string())) return "cuda";
#endif
  return "cpu";
}

}  // namespace attnbench
