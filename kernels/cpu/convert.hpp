// bf16 and fp16 to fp32 and back, a row at a time. Rounding is to the nearest, ties to even, once; overflow gives
// infinity, subnormals are kept, NaN stays NaN (with its sign, made quiet). Addresses need no alignment.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/flash_varlen.hpp"

namespace attnbench::flash_varlen::cpu {

/// Bytes of one element.
constexpr int64_t size_of(Type type) {
  return type == Type::fp32 ? 4 : 2;
}

/// to[0 … count) = scale * from[0 … count); the product is rounded to fp32. from holds elements of `type`.
void to_fp32(Type type, const std::byte* from, int64_t count, float scale, float* to);

/// to[0 … count) = from[0 … count) * scale rounded to `type` (the product is rounded to fp32 first).
void from_fp32(Type type, const float* from, int64_t count, float scale, std::byte* to);

}  // namespace attnbench::flash_varlen::cpu
