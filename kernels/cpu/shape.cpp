#include "kernels/cpu/shape.hpp"

#include <cmath>
#include <stdexcept>
#include <string>

namespace attnbench::flash_varlen::cpu {
namespace {

void require(bool holds, const std::string& expected, const std::string& got) {
  if (!holds) throw std::invalid_argument("flash_varlen (CPU) takes " + expected + ", but got " + got);
}

void check_prefix_sums(const char* name, const int32_t* sums, int64_t sequences) {
  require(sums != nullptr, std::string(name) + " with sequences + 1 elements", "a null pointer");
  require(sums[0] == 0, std::string(name) + " that begins with 0", std::to_string(sums[0]));
  for (int64_t i = 0; i < sequences; ++i) {
    require(sums[i] <= sums[i + 1], std::string(name) + " that does not decrease",
            std::to_string(sums[i + 1]) + " after " + std::to_string(sums[i]) + " at sequence " + std::to_string(i));
  }
}

}  // namespace

void check_shape(const Shape& shape, int workers) {
  require(workers >= 1, "one worker or more", std::to_string(workers));
  require(shape.sequences >= 0, "0 sequences or more", std::to_string(shape.sequences));
  require(shape.d >= 1 && shape.d <= 256, "a head dim d in [1, 256]", std::to_string(shape.d));
  require(shape.hkv >= 1 && shape.hq >= 1 && shape.hq % shape.hkv == 0, "hkv >= 1 that divides hq >= 1",
          "hq = " + std::to_string(shape.hq) + ", hkv = " + std::to_string(shape.hkv));
  require(std::isfinite(shape.scale), "a finite scale", std::to_string(shape.scale));
  require(shape.type == Type::bf16 || shape.type == Type::fp16 || shape.type == Type::fp32, "bf16, fp16 or fp32",
          "type " + std::to_string(static_cast<int>(shape.type)));
  check_prefix_sums("cu_q", shape.cu_q, shape.sequences);
  check_prefix_sums("cu_k", shape.cu_k, shape.sequences);
}

void check_workspace(const void* workspace) {
  const auto address = reinterpret_cast<uintptr_t>(workspace);
  require(address % 64 == 0, "a workspace aligned to 64 bytes", "address % 64 = " + std::to_string(address % 64));
}

}  // namespace attnbench::flash_varlen::cpu
