// Which keys a query sees, as in kernels/flash_varlen.hpp.
#pragma once

#include <cstdint>

namespace attnbench::flash_varlen::sm80 {

/// One sequence: its rows in the packed tensors and its mask.
struct Sequence {
  int q_begin, k_begin;  ///< first packed token
  int lq, lk;
  int left, right, offset;  ///< query i sees keys [i + offset - left, i + offset + right]; negative left, right: unlimited

  __device__ int first_key(int i) const { return left < 0 ? 0 : max(0, i + offset - left); }
  __device__ int end_key(int i) const { return right < 0 ? lk : max(0, min(lk, i + offset + right + 1)); }
  __device__ bool sees(int i, int j) const { return i < lq && j >= first_key(i) && j < end_key(i); }

  /// Keys [seen_begin(), seen_end()) are those that some query sees. The others must not be multiplied, not even by 0: they
  /// may hold NaN.
  __device__ int seen_begin() const { return lq > 0 ? first_key(0) : 0; }
  __device__ int seen_end() const { return lq > 0 ? end_key(lq - 1) : 0; }

  /// Every query of [i0, i1) that exists sees every key of [j0, j1), and both ranges lie inside the sequence.
  __device__ bool all_seen(int i0, int i1, int j0, int j1) const {
    return i1 <= lq && j1 <= lk && first_key(i1 - 1) <= j0 && end_key(i0) >= j1;
  }
};

struct Mask {
  const int32_t *cu_q, *cu_k;
  int left, right;
  bool bottom_right;

  __device__ Sequence sequence(int n) const {
    Sequence s;
    s.q_begin = cu_q[n];
    s.k_begin = cu_k[n];
    s.lq = cu_q[n + 1] - s.q_begin;
    s.lk = cu_k[n + 1] - s.k_begin;
    s.left = left;
    s.right = right;
    s.offset = bottom_right ? s.lk - s.lq : 0;
    return s;
  }
};

}  // namespace attnbench::flash_varlen::sm80
