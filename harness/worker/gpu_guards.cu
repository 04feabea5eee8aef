#include "harness/worker/gpu_guards.hpp"

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace attnbench {
namespace {

constexpr int kThreads = 256;

/// One thread a byte; row 0 of the grid is the band before the block, row 1 the one behind it.
__device__ unsigned char* byte_of_band(unsigned char* block, size_t bytes, size_t band_bytes, size_t i) {
  return (blockIdx.y == 0 ? block - band_bytes : block + bytes) + i;
}

__device__ unsigned char byte_of_pattern(uint16_t pattern, size_t i) {
  return i % 2 == 0 ? pattern & 0xff : pattern >> 8;
}

__global__ void write_bands(unsigned char* block, size_t bytes, size_t band_bytes, uint16_t pattern) {
  const size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < band_bytes) *byte_of_band(block, bytes, band_bytes, i) = byte_of_pattern(pattern, i);
}

__global__ void mend_bands(unsigned char* block, size_t bytes, size_t band_bytes, uint16_t pattern, uint32_t* changed) {
  const size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= band_bytes) return;
  unsigned char* byte = byte_of_band(block, bytes, band_bytes, i);
  if (*byte == byte_of_pattern(pattern, i)) return;
  *byte = byte_of_pattern(pattern, i);
  atomicAdd(changed + blockIdx.y, 1);
}

dim3 both_bands(size_t band_bytes) {
  return dim3(static_cast<unsigned>((band_bytes + kThreads - 1) / kThreads), 2);
}

}  // namespace

void write_gpu_guards(void* block, size_t bytes, size_t band_bytes, uint16_t pattern, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  write_bands<<<both_bands(band_bytes), kThreads, 0, on>>>(static_cast<unsigned char*>(block), bytes, band_bytes, pattern);
  cudaError_t status = cudaGetLastError();
  if (status == cudaSuccess) status = cudaMemsetAsync(block, 0xff, bytes, on);
  if (status != cudaSuccess) throw std::runtime_error(std::string("guard bands on the GPU: ") + cudaGetErrorString(status));
}

void look_at_gpu_guards(void* block, size_t bytes, size_t band_bytes, uint16_t pattern, uint32_t* changed, void* stream) {
  mend_bands<<<both_bands(band_bytes), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<unsigned char*>(block),
                                                                                         bytes, band_bytes, pattern, changed);
}

}  // namespace attnbench
