// flash_varlen: exact attention over packed sequences, forward and backward, with plain pointers (no LibTorch).
//
//   S = scale * Q K^T over the visible keys,  LSE_i = ln sum_j exp S_ij,  P = exp(S - LSE),  O = P V
//   D_i = sum_x dO_ix O_ix,  dV = P^T dO,  dP = dO V^T,  dS = P o (dP - D),  dQ = scale dS K,  dK = scale dS^T Q
// Source: Dao et al., FlashAttention (arXiv 2205.14135) and FlashAttention-2 (arXiv 2307.08691, sections 3.1 and 3.2).
//
// Query i of a sequence sees key j if i + offset - left <= j <= i + offset + right, where offset = lk - lq
// (bottom-right) or 0 (top-left); a negative bound is unlimited; causal is right = 0. A query that sees no key gets
// O = 0, LSE = -inf, dQ = 0; a key that no query sees gets dK = dV = 0. Query head h reads key head h / (hq / hkv).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace attnbench::flash_varlen {

enum class Type { bf16, fp16, fp32 };

/// Runs body(worker) once for every worker in [0, workers) and returns when all have ended; on as many threads as it likes, for
/// no body waits for another.
using ParallelFor = std::function<void(int workers, const std::function<void(int worker)>& body)>;

struct Shape {
  int64_t sequences = 0;
  int64_t hq = 0, hkv = 0;        ///< hkv divides hq
  int64_t d = 0;                  ///< head dim of Q, K, V and O
  const int32_t* cu_q = nullptr;  ///< [sequences + 1] prefix sums of query lengths; lengths of 0 are welcome
  const int32_t* cu_k = nullptr;  ///< [sequences + 1] likewise of key lengths
  int64_t window_left = -1, window_right = -1;
  bool bottom_right = true;
  float scale = 0;
  Type type = Type::bf16;
};

/// Rows of [tokens, heads, channels]; strides in elements, channels are contiguous.
struct ConstRows {
  const void* data = nullptr;
  int64_t token_stride = 0, head_stride = 0;
};
struct Rows {
  void* data = nullptr;
  int64_t token_stride = 0, head_stride = 0;
};

struct Forward {
  Shape shape;
  ConstRows q, k, v;
  Rows o;                ///< every row of every sequence is written, nothing else
  float* lse = nullptr;  ///< [cu_q[sequences], hq], natural log
};

struct Backward {
  Shape shape;
  ConstRows q, k, v, o, dout;
  const float* lse = nullptr;  ///< as the forward left it
  Rows dq, dk, dv;             ///< every row of every sequence is written, nothing else
};

/// CPU kernels (kernels/cpu/). Results do not depend on `workers` to the last bit.
/// workspace: at least *_workspace_bytes, 64-byte aligned, contents irrelevant.
/// Throw std::invalid_argument with a sentence on a shape they do not take (d outside [1, 256], hkv not dividing hq, …).
size_t forward_cpu_workspace_bytes(const Shape& shape, int workers);
size_t backward_cpu_workspace_bytes(const Shape& shape, int workers);
void forward_cpu(const Forward& args, void* workspace, int workers, const ParallelFor& parallel);
void backward_cpu(const Backward& args, void* workspace, int workers, const ParallelFor& parallel);

/// How the CUDA kernels (kernels/sm80/) are launched. Shape's cu_q and cu_k, and all rows, are device pointers here.
struct CudaLaunch {
  void* stream = nullptr;        ///< cudaStream_t
  int64_t max_q = 0, max_k = 0;  ///< longest sequence of queries, of keys
  int64_t total_q = 0;           ///< cu_q[sequences]
  int shared_memory_bytes = 0;   ///< limit a block; 0: what the device offers
};

/// CUDA kernels for SM 8.0 and later: head dim 64 and 128, bf16 and fp16, rows that start at multiples of 16 bytes, a scale of at
/// least 0, at most 65535 sequences and heads, lengths and windows below 2^30.
/// workspace: device memory of backward_cuda_workspace_bytes, 16-byte aligned, contents irrelevant.
/// Throw std::invalid_argument with a sentence on a shape they do not take, std::runtime_error when the device refuses a launch.
size_t backward_cuda_workspace_bytes(const Shape& shape, const CudaLaunch& launch);
void forward_cuda(const Forward& args, const CudaLaunch& launch);
void backward_cuda(const Backward& args, const CudaLaunch& launch, void* workspace);

}  // namespace attnbench::flash_varlen
