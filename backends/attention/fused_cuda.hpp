// What LibTorch's fused kernels for NVIDIA GPUs have in common (FlashAttention-2, the memory-efficient kernel, cuDNN's),
// whoever calls them.
#pragma once

#include "harness/worker/backend.hpp"

namespace attnbench {

/// bf16 and fp16, head dims in multiples of 8 up to 256, rows that start at multiples of 16 bytes (nobody checks that: a case
/// with unaligned strides would end the CUDA context), SM 8.0 to 12.1, gradients of queries summed by atomics.
Capabilities fused_cuda_capabilities();

/// The memory-efficient kernel: as cuDNN's, and dS is computed from the P that was rounded for P^T dO
/// (LibTorch 2.11, mem_eff_attention/kernel_backward.h: dS = (dP - D) times the attention tile in shared memory, then the scale).
Profile efficient_profile();

/// Sizes of one call of a fused kernel.
struct FusedSize {
  int64_t query_rows = 0;  ///< of all sequences, each rounded up to whole blocks of 128
  int64_t keys = 0;        ///< of all sequences
};

/// Bytes beyond the outputs: the LSE in the kernel's own layout; in the backward a float32 accumulator of dQ, row sums,
/// contiguous copies of O and dO, and for GQA dK and dV of every query head.
int64_t fused_cuda_workspace_bytes(const Problem& problem, FusedSize size, Pass pass);

}  // namespace attnbench
