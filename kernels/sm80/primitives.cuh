// One-instruction wrappers for SM 8.0 (PTX ISA 7.0): asynchronous copies, ldmatrix, mma, and the shared-memory swizzle.
//
// Fragments of mma.m16n8k16, with g = lane / 4 and t = lane % 4:
//   A (16 x 16, row):  a0 = [g][2t..], a1 = [g + 8][2t..], a2 = [g][2t + 8..], a3 = [g + 8][2t + 8..]
//   B (16 x 8, col):   b0 = [2t..][g], b1 = [2t + 8..][g]
//   C (16 x 8, fp32):  c0, c1 = [g][2t..], c2, c3 = [g + 8][2t..]
// so two neighbouring C tiles, packed to 16 bits, are one A fragment.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace attnbench::flash_varlen::sm80 {

using Half = __half;
using Bfloat = __nv_bfloat16;

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/// Copies 16 bytes from global to shared memory; valid = false writes zeros and reads nothing.
__device__ inline void copy_16_bytes_async(uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0));
}
__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;");
}
/// Waits until at most `pending` of the newest committed groups are still under way.
template <int pending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

__device__ inline void load_matrices(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared));
}
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared));
}

/// C += A B, fp32 accumulators.
template <class T>
__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void mma<Half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void mma<Bfloat>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Two floats rounded to nearest even; `low` in the lower half.
template <class T>
__device__ inline uint32_t pack(float low, float high);
template <>
__device__ inline uint32_t pack<Half>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <>
__device__ inline uint32_t pack<Bfloat>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

__device__ inline float to_float(Half x) {
  return __half2float(x);
}
__device__ inline float to_float(Bfloat x) {
  return __bfloat162float(x);
}
/// 2^x, relative error at most 2^-22.5; 0 for -inf.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// A tile of `columns` 16-bit elements a row (64 or 128) in shared memory. The 16-byte chunk index is XORed with the row
/// modulo 8, so that the eight rows of an 8x8 matrix lie in eight different bank groups.
template <int columns>
struct Tile {
  static constexpr int kChunks = columns / 8;
  uint32_t base;
  __device__ uint32_t at(int row, int chunk) const { return base + (row * kChunks + (chunk ^ (row & 7))) * 16; }

  /// Lane's address for load_matrices: the A fragment at rows r0.., columns 16 * k..
  __device__ uint32_t a_fragment(int r0, int k) const { return at(r0 + (lane() & 15), 2 * k + (lane() >> 4)); }
  /// load_matrices: B fragments of two 8-wide column tiles, stored as rows n0.. (16 rows are columns of B), depth 16 * k..
  __device__ uint32_t b_fragments(int n0, int k) const {
    return at(n0 + (lane() & 7) + ((lane() >> 4) << 3), 2 * k + ((lane() >> 3) & 1));
  }
  /// load_matrices_transposed: B fragments of two 8-wide column tiles at columns 16 * n.., depth = rows k0..
  __device__ uint32_t b_fragments_from_rows(int k0, int n) const { return at(k0 + (lane() & 15), 2 * n + (lane() >> 4)); }
  /// load_matrices_transposed: the A fragment whose rows are columns 16 * m.. and whose depth is rows k0..
  __device__ uint32_t a_fragment_from_columns(int m, int k0) const {
    return at(k0 + (lane() & 7) + ((lane() >> 4) << 3), 2 * m + ((lane() >> 3) & 1));
  }
  __device__ static int lane() { return threadIdx.x & 31; }
};

/// Starts the copy of rows [first, first + rows) of a [tokens, channels] matrix into a tile; rows outside [begin, end) become 0
/// (what lies there may be another sequence, or NaN: 0 * NaN must not leak into a product).
template <int rows, int columns, int threads, class T>
__device__ inline void copy_tile_async(Tile<columns> tile, const T* matrix, int64_t token_stride, int first, int begin, int end) {
  constexpr int kChunks = columns / 8;
#pragma unroll
  for (int i = threadIdx.x; i < rows * kChunks; i += threads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool valid = first + row >= begin && first + row < end;
    const T* source = matrix + (valid ? (first + row) * token_stride + chunk * 8 : 0);
    copy_16_bytes_async(tile.at(row, chunk), source, valid);
  }
}

}  // namespace attnbench::flash_varlen::sm80
