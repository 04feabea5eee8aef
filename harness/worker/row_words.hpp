// Memory looked at where it lies (row_team.hpp), stretch by stretch, on a CPU side by side: fingerprints of it, and whether
// two tensors are the same. On a GPU one launch and one wait for all that is asked for together.
#pragma once

#include <cstdint>
#include <vector>

#include <c10/core/Device.h>

namespace attnbench {

/// Bytes that are read as words of 8, the last one filled up with zeros; they begin where a word may.
struct Words {
  const void* data = nullptr;
  int64_t bytes = 0;
};

/// Of each: the sum, modulo 2^64, of its words, each mixed with its place. One word that changed always changes the sum; several
/// leave it as it was with a probability of 2^-64, whatever they have in common.
std::vector<uint64_t> fingerprints(c10::Device device, const std::vector<Words>& all);

/// Elements of one dtype, side by side.
struct ElementPair {
  const void *a = nullptr, *b = nullptr;
  int64_t elements = 0;
  int64_t element_bytes = 1;    ///< 1, 2, 4 or 8
  bool zeros_are_same = false;  ///< they are floats of which 0 and -0 are the same; else only the same bits are
};

/// Of each: whether all elements are the same. Throws std::invalid_argument for elements of another size.
std::vector<bool> same_elements(c10::Device device, const std::vector<ElementPair>& all);

}  // namespace attnbench
