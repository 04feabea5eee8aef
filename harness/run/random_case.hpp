// Random cases over the whole grammar: what nobody thought of writing into a suite.
#pragma once

#include <cstdint>

#include "harness/run/case.hpp"

namespace attnbench {

/// Bounds of a random case, so that a float64 oracle on a CPU has it within a second.
inline constexpr int64_t kMostScores = int64_t{1} << 22;    ///< scores_of()
inline constexpr int64_t kMostElements = int64_t{1} << 22;  ///< elements_of()

/// Scores of all heads, as a dense backend computes them: b * hq * longest lq * longest lk.
int64_t scores_of(const Problem& problem);
/// Numbers in q, k, v and o with every sequence as long as the longest.
int64_t elements_of(const Problem& problem);

/// Case `number` of `seed`: a function of the two alone, the same on every machine. Every key and every value of every enum
/// comes but strides=far, which takes gigabytes; lengths crowd around 0, 1 and the edges of tiles, lq and lk know nothing of each
/// other, and rare options are rare enough that most cases lie inside what some backend declares. A valid line within the bounds;
/// not to be timed.
Case random_case(uint64_t seed, uint64_t number);

}  // namespace attnbench
