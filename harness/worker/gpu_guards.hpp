// Guard bands around blocks of a GPU's memory, written and looked at on the GPU. Nothing here waits.
#pragma once

#include <cstddef>
#include <span>

#include "harness/worker/guard_bands.hpp"

namespace attnbench {

/// Fills the block with this byte, and the bands before and behind it with the two bytes of kGuardPattern in turn, on the stream
/// (cudaStream_t) on which its user was given it. Throws std::runtime_error where CUDA refuses.
void write_gpu_guards(const GuardedBlock& block, unsigned char fill, void* stream);

inline constexpr size_t kMostGuardedAtOnce = 64;

/// Adds what has changed around blocks[i], of which there are at most kMostGuardedAtOnce, to changed[i] (memory that the GPU can
/// write), and makes the bands whole again, on the stream (cudaStream_t) on which the blocks' memory may next be given away: a
/// write that is still under way on another one is missed. Launched from destructors: an error of CUDA stays for the next call
/// that waits.
void look_at_gpu_guards(std::span<const GuardedBlock> blocks, ChangedGuards* changed, void* stream);

}  // namespace attnbench
