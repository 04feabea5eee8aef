// Guard bands around blocks of a GPU's memory, written and looked at on the GPU. Nothing here waits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace attnbench {

/// Fills the block with 0xFF, and band_bytes before and behind it with the two bytes of `pattern` in turn, on the stream
/// (cudaStream_t) on which its user was given it. Throws std::runtime_error where CUDA refuses.
void write_gpu_guards(void* block, size_t bytes, size_t band_bytes, uint16_t pattern, void* stream);

/// Adds the number of changed bytes before the block to changed[0] and of those behind it to changed[1] (device memory), and
/// makes the bands whole again, on the stream (cudaStream_t) on which the block's memory may next be given away: a write that is
/// still under way on another one is missed. Launched from destructors: an error of CUDA stays for the next call that waits.
void look_at_gpu_guards(void* block, size_t bytes, size_t band_bytes, uint16_t pattern, uint32_t* changed, void* stream);

}  // namespace attnbench
