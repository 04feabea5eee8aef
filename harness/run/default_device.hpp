// Which device a run uses that names none.
#pragma once

#include <filesystem>
#include <string>

namespace attnbench {

/// "cuda" where the build can use a GPU, the driver offers one (a device file in `dev`) and CUDA_VISIBLE_DEVICES does not hide
/// all; else "cpu".
std::string default_device(const std::filesystem::path& dev = "/dev");

}  // namespace attnbench
