// What the worker asks of a GPU. In a build without CUDA (no_cuda.cpp) the answers are sentences.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "harness/run/declaration.hpp"

namespace attnbench {

/// The GPU with this index, made the current one. Throws UsageError where it is not there, std::runtime_error where it cannot
/// be used (a driver older than the toolkit, no free memory), with a sentence.
Device find_cuda_device(int index);

/// Bytes that LibTorch could still allocate there.
int64_t available_cuda_bytes(int index);

/// The CUDA context is unusable for the rest of the process: the worker ends, and another one takes over.
class CudaContextFailed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Waits for the device; throws CudaContextFailed with CUDA's error if it does not work any more. A CPU always works.
void check_context(const Device& device);

/// Waits for the current device, whatever state it is in.
void wait_for_device();

}  // namespace attnbench
