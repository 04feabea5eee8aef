// How large a case may be: far beyond any machine, and small enough that no count of tokens or elements overflows.
#pragma once

#include <cstdint>
#include <limits>

namespace attnbench {

/// Prefix sums of lengths are int32 (cu_seqlens), so one length and the sum of a case's rows are limited alike.
inline constexpr int64_t kMaxLength = std::numeric_limits<int32_t>::max();
inline constexpr int64_t kMaxRows = kMaxLength;
inline constexpr int64_t kMaxSequences = 1 << 20;
inline constexpr int64_t kMaxHeads = 1 << 16;
inline constexpr int64_t kMaxHeadDim = 1 << 12;

/// A model is trained on pieces of a text of this repository, whose reference keeps whole score matrices.
inline constexpr int64_t kMaxTrainedLength = 1 << 15;
inline constexpr int64_t kMaxSteps = 100'000;

/// Cases that one suite, or one line with sweeps, may expand into.
inline constexpr int64_t kMaxCases = 100'000;

/// Bytes of the lines that those cases would be, written one by one: several times what kMaxCases lines of usual length need.
inline constexpr int64_t kMaxCaseBytes = int64_t{64} << 20;

/// Calls of one case (`repeats=`, `audit --repeats`).
inline constexpr int64_t kMaxRepeats = 1'000'000;

}  // namespace attnbench
