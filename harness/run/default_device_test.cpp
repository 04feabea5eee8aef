// Which device a run uses that names none.
#include "harness/run/default_device.hpp"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

namespace attnbench {
namespace {

namespace fs = std::filesystem;

#ifdef ATTNBENCH_HAS_CUDA
constexpr auto kWithGpu = "cuda";
#else
constexpr auto kWithGpu = "cpu";  // a build that cannot use it
#endif

TEST(DefaultDevice, IsAGpuWhereOneIsThereAndNotHidden) {
  const fs::path dev = fs::temp_directory_path() / fmt::format("attnbench-dev-{}", getpid());
  fs::create_directories(dev);
  const char* const before = std::getenv("CUDA_VISIBLE_DEVICES");
  const std::string restored = before ? before : "";
  unsetenv("CUDA_VISIBLE_DEVICES");
  EXPECT_EQ(default_device(dev), "cpu");
  for (const char* other : {"nvidiactl", "nvidia-uvm", "nvidia"}) std::ofstream(dev / other) << "";
  EXPECT_EQ(default_device(dev), "cpu") << "the driver alone";
  std::ofstream(dev / "nvidia3") << "";
  EXPECT_EQ(default_device(dev), kWithGpu);
  for (const char* hidden : {"", "-1"}) {
    setenv("CUDA_VISIBLE_DEVICES", hidden, 1);
    EXPECT_EQ(default_device(dev), "cpu") << hidden;
  }
  setenv("CUDA_VISIBLE_DEVICES", "1", 1);
  EXPECT_EQ(default_device(dev), kWithGpu);
  before ? setenv("CUDA_VISIBLE_DEVICES", restored.c_str(), 1) : unsetenv("CUDA_VISIBLE_DEVICES");
  fs::remove_all(dev);
}

}  // namespace
}  // namespace attnbench
