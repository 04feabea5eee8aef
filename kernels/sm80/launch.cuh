// What the launchers need: checked CUDA calls, what the device offers, strides of 16-byte rows.
#pragma once

#include <cuda_runtime.h>

#include <limits>
#include <stdexcept>
#include <string>

#include "kernels/flash_varlen.hpp"
#include "kernels/sm80/visibility.cuh"

namespace attnbench::flash_varlen::sm80 {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("flash_varlen: ") + what + ": " + cudaGetErrorString(status));
}

/// Bytes of shared memory that one block may use: the device's limit, or the smaller one that the caller injects.
inline int shared_memory_limit(const CudaLaunch& launch) {
  int device = 0, offered = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&offered, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory of the device");
  return launch.shared_memory_bytes > 0 && launch.shared_memory_bytes < offered ? launch.shared_memory_bytes : offered;
}

inline int multiprocessors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "multiprocessors of the device");
  return count;
}

/// Launches with dynamic shared memory; an attribute or launch that the device refuses is an exception, never silence.
template <class Args, class Variant>
void launch_checked(void (*kernel)(Args, Variant), dim3 grid, int threads, int shared_bytes, cudaStream_t stream,
                    const Args& args, const Variant& variant, const char* name) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), name);
  kernel<<<grid, threads, shared_bytes, stream>>>(args, variant);
  check(cudaGetLastError(), name);
}

inline Mask mask_of(const Shape& shape) {
  return {shape.cu_q, shape.cu_k, static_cast<int>(shape.window_left), static_cast<int>(shape.window_right), shape.bottom_right};
}

inline void refuse(const std::string& why) {
  throw std::invalid_argument("flash_varlen on CUDA " + why);
}

inline void check_rows(const ConstRows& rows, const char* name) {
  const bool aligned =
      reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.token_stride % 8 == 0 && rows.head_stride % 8 == 0;
  if (!aligned)
    refuse(std::string("reads and writes 16 bytes at a time; the rows of ") + name + " do not start at multiples of 16 bytes");
}
inline void check_rows(const Rows& rows, const char* name) {
  check_rows(ConstRows{rows.data, rows.token_stride, rows.head_stride}, name);
}

inline void check_shape(const Shape& shape, const CudaLaunch& launch) {
  if (shape.d != 64 && shape.d != 128) refuse("takes head dims 64 and 128, got " + std::to_string(shape.d));
  if (shape.type == Type::fp32) refuse("takes bf16 and fp16, got fp32");
  if (shape.hkv < 1 || shape.hq % shape.hkv != 0)
    refuse("needs hkv to divide hq, got hq=" + std::to_string(shape.hq) + " hkv=" + std::to_string(shape.hkv));
  if (!(shape.scale >= 0)) refuse("needs a scale of at least 0, got " + std::to_string(shape.scale));
  if (shape.sequences > 65535 || shape.hq > 65535) refuse("takes at most 65535 sequences and heads");
  const int64_t limit = std::numeric_limits<int32_t>::max() / 2;
  if (launch.max_q > limit || launch.max_k > limit || shape.window_left > limit || shape.window_right > limit)
    refuse("takes lengths and windows below 2^30");
}

}  // namespace attnbench::flash_varlen::sm80
