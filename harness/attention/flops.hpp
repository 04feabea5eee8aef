// How many floating-point operations one pass of a case is worth: the numerator of every TFLOP/s that is reported.
#pragma once

#include <cstdint>

#include "harness/run/case.hpp"

namespace attnbench {

/// Pairs (query, key) that the mask lets through, summed over the sequences of the case, for one query head.
/// Padding does not count: these are useful pairs.
int64_t visible_pairs(const Problem& problem, const SequenceLengths& lengths);

/// Useful operations, exact: with P pairs over all sequences and query heads, forward 2 P (d + dv) for Q K^T and P V,
/// backward 2 P (3 d + 2 dv) for S again, dP, dQ, dK and dV.
double exact_flops(const Problem& problem, const SequenceLengths& lengths, Pass pass);

/// The papers' convention (Dao, arXiv 2307.08691, section 4.1): 4 lq lk d per sequence and query head, halved when
/// causal whatever the lengths, windows not counted, backward 2.5 times the forward. dv != d: 2 lq lk (d + dv).
double paper_flops(const Problem& problem, const SequenceLengths& lengths, Pass pass);

}  // namespace attnbench
