// What the CPU kernels refuse, and the lengths of the sequences that they take.
#pragma once

#include <cstdint>

#include "kernels/flash_varlen.hpp"

namespace attnbench::flash_varlen::cpu {

/// The tokens of one sequence begin at first_q and first_k and are lq and lk in number.
struct Sequence {
  int64_t first_q = 0, lq = 0;
  int64_t first_k = 0, lk = 0;
};

inline Sequence sequence_of(const Shape& shape, int64_t index) {
  return {shape.cu_q[index], shape.cu_q[index + 1] - shape.cu_q[index], shape.cu_k[index],
          shape.cu_k[index + 1] - shape.cu_k[index]};
}

/// Throws std::invalid_argument with a sentence unless `shape` can be computed by `workers` workers.
void check_shape(const Shape& shape, int workers);

/// Likewise unless `workspace` is 64-byte aligned.
void check_workspace(const void* workspace);

}  // namespace attnbench::flash_varlen::cpu
