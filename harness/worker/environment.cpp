#include "harness/worker/environment.hpp"

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <thread>

#include <sys/utsname.h>
#include <unistd.h>

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/headeronly/version.h>

#include "harness/worker/revision.hpp"  // written by the build: revision.cmake

extern char** environ;

namespace attnbench {

namespace {

using nlohmann::json;

json first_line(const std::filesystem::path& file) {
  std::ifstream in(file);
  std::string line;
  return std::getline(in, line) ? json(line) : json(nullptr);
}

/// What the build did not know is empty.
json text_or_null(const std::string& text) {
  return text.empty() ? json(nullptr) : json(text);
}

json cpu_model() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return nullptr;
}

json numa_nodes() {
  int64_t nodes = 0;
  std::error_code missing;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/devices/system/node", missing)) {
    const std::string name = entry.path().filename();
    nodes += name.starts_with("node") && name.find_first_not_of("0123456789", 4) == std::string::npos;
  }
  return nodes > 0 ? json(nodes) : json(nullptr);
}

json cpu() {
  return {{"model", cpu_model()},
          {"cores", std::thread::hardware_concurrency()},
          {"threads", at::get_num_threads()},
          {"governor", first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")},
          {"smt_active", first_line("/sys/devices/system/cpu/smt/active")},
          {"numa_nodes", numa_nodes()},
          {"capability", at::get_cpu_capability()}};
}

json kernel() {
  utsname names{};
  return uname(&names) == 0 ? json(std::string(names.sysname) + " " + names.release) : json(nullptr);
}

/// Variables that change how LibTorch and its libraries compute.
json variables() {
  json found = json::object();
  for (char** variable = environ; *variable; ++variable) {
    const std::string_view text = *variable;
    for (std::string_view prefix : {"OMP_", "MKL_", "KMP_", "GOMP_", "TORCH_", "ATEN_", "PYTORCH_", "ONEDNN_", "DNNL_", "CUDA_",
                                    "CUDNN_", "CUBLAS_", "NVIDIA_"})
      if (text.starts_with(prefix)) found[std::string(text.substr(0, text.find('=')))] = text.substr(text.find('=') + 1);
  }
  return found;
}

}  // namespace

json environment() {
  return {{"cpu", cpu()},
          {"kernel", kernel()},
          {"torch", {{"version", TORCH_VERSION}, {"config", at::show_config()}}},
          {"build",
           {{"compiler", ATTNBENCH_COMPILER},
            {"flags", ATTNBENCH_CXX_FLAGS},
            {"type", ATTNBENCH_BUILD_TYPE},
            {"nvcc", text_or_null(ATTNBENCH_NVCC)},
            {"cuda_architectures", text_or_null(ATTNBENCH_CUDA_ARCHITECTURES)}}},
          {"git", {{"sha", kGitSha}, {"dirty", kGitDirty}}},
          {"variables", variables()}};
}

}  // namespace attnbench
