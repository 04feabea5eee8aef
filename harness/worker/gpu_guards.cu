#include "harness/worker/gpu_guards.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

namespace attnbench {
namespace {

constexpr int kThreads = 256;
constexpr size_t kWord = sizeof(uint4);  // what a thread reads and writes at a time; words are aligned, a band behind need not be

__device__ unsigned char byte_of_band(size_t i) {
  return i % 2 == 0 ? kGuardPattern & 0xff : kGuardPattern >> 8;
}

/// 16 bytes of a band from its byte i on.
__device__ uint4 word_of_band(size_t i) {
  const uint32_t low = byte_of_band(i), high = byte_of_band(i + 1), two = low | high << 8, four = two | two << 16;
  return {four, four, four, four};
}

__device__ bool are_equal(uint4 a, uint4 b) {
  return a.x == b.x && a.y == b.y && a.z == b.z && a.w == b.w;
}

/// Both bands and the block, one thread a word; `bands` is the first byte of the band before.
__global__ void write_block(char* bands, size_t bytes, unsigned char fill) {
  const uint32_t four = fill * 0x01010101u;
  const size_t behind = kGuardBytes + bytes, end = behind + kGuardBytes;
  const size_t first = (static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x) * kWord;
  auto* const word = reinterpret_cast<uint4*>(bands + first);
  if (first < kGuardBytes) {
    *word = word_of_band(first);
  } else if (first + kWord <= behind) {
    *word = {four, four, four, four};
  } else if (first >= behind && first + kWord <= end) {
    *word = word_of_band(first - behind);
  } else {  // where the block ends, or the band behind it
    for (size_t i = first; i < min(first + kWord, end); ++i) bands[i] = i < behind ? fill : byte_of_band(i - behind);
  }
}

/// Mends bytes [begin, end) of a band, which lie in one word; how many had changed.
__device__ uint32_t mend(unsigned char* band, size_t begin, size_t end) {
  auto* const word = reinterpret_cast<uint4*>(band + begin);
  if (end - begin == kWord && are_equal(*word, word_of_band(begin))) return 0;
  uint32_t changed = 0;
  for (size_t i = begin; i < end; ++i) {
    changed += band[i] != byte_of_band(i);
    band[i] = byte_of_band(i);
  }
  return changed;
}

struct SomeBlocks {
  GuardedBlock blocks[kMostGuardedAtOnce];
};

/// One thread a word; row 0 of the grid is the band before a block, row 1 the one behind it; the grid's z counts blocks.
__global__ void mend_bands(const __grid_constant__ SomeBlocks some, ChangedGuards* changed) {
  const GuardedBlock& block = some.blocks[blockIdx.z];
  const bool before = blockIdx.y == 0;
  auto* const band = reinterpret_cast<unsigned char*>(before ? block.data - kGuardBytes : block.data + block.bytes);
  const size_t off = reinterpret_cast<size_t>(band) % kWord;  // bytes of the first word that lie before the band
  const size_t word = (static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x) * kWord;
  if (word >= off + kGuardBytes) return;
  const uint32_t bytes = mend(band, word < off ? 0 : word - off, min(word + kWord - off, kGuardBytes));
  if (bytes > 0) atomicAdd(before ? &changed[blockIdx.z].before : &changed[blockIdx.z].behind, bytes);
}

unsigned blocks_for(size_t bytes) {
  return static_cast<unsigned>((bytes + kThreads * kWord - 1) / (kThreads * kWord));
}

}  // namespace

void write_gpu_guards(const GuardedBlock& block, unsigned char fill, void* stream) {
  const unsigned blocks = blocks_for(block.bytes + 2 * kGuardBytes);
  write_block<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(block.data - kGuardBytes, block.bytes, fill);
  if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess)
    throw std::runtime_error(std::string("guard bands on the GPU: ") + cudaGetErrorString(status));
}

void look_at_gpu_guards(std::span<const GuardedBlock> blocks, ChangedGuards* changed, void* stream) {
  SomeBlocks some;
  std::copy(blocks.begin(), blocks.end(), some.blocks);
  const dim3 grid(blocks_for(kGuardBytes + kWord), 2, static_cast<unsigned>(blocks.size()));
  mend_bands<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(some, changed);
}

}  // namespace attnbench
