// Errors of tensors, row by row where they lie (row_team.hpp): on a CPU side by side, on a GPU in one launch a tensor and one for
// all. Plain pointers, so that no ATen has to be compiled as CUDA; verdict_statistics.cpp makes statistics of the columns.
#pragma once

#include <cstdint>
#include <vector>

#include <c10/core/Device.h>

#include "harness/run/problem.hpp"

namespace attnbench {

/// Rows of a tensor and what they are compared with: contiguous float64.
struct ComparedRows {
  int64_t rows = 0, channels = 0;
  const double *got = nullptr, *value = nullptr;  ///< [rows, channels]
  const double* variance = nullptr;               ///< the same; no part in field_columns(), like the next two
  const double* allowance = nullptr;              ///< the same; nullptr: 0
  const double* freedom = nullptr;                ///< [rows]
};

/// What is measured of a tensor: sums, then the largest of all, then the first element that has the largest |z|.
enum ErrorColumn {
  kElements,
  kExact,
  kViolations,
  kFinite,
  kError2,  ///< (got - x)^2
  kCross,   ///< (got - x) x
  kExpected2,
  kZ2,
  kSignal2,
  kGain,
  kGainedSignal2,
  kCoherent2,
  kAllowance2,
  kEnergy,            ///< E_r of rows with a freedom
  kEnergy2OfFreedom,  ///< E_r^2 / nu_r
  kRoundedGain,       ///< (got - round(x)) x / sigma^2; this, the next two and kMaxStep: only where only outputs are rounded
  kInnerGain,         ///< tau |x| / sigma^2
  kInnerVariance,     ///< (tau ulp + tau^2) x^2 / sigma^4
  kMaxStep,           ///< largest ulp |x| / sigma^2
  kMaxAbs,
  kMaxZ,         ///< NaN where one z is
  kAtMaxZ,       ///< its index
  kGotAtMaxZ,    ///< got there
  kValueAtMaxZ,  ///< x there
  kErrorColumns
};

/// Where columns are put, float64 on the tensors' device. A tensor is cut into parts, each measured for itself; they follow from
/// its own size, so that its numbers do not depend on what is measured with it.
struct Columns {
  int64_t parts = 0;             ///< as parts_of() says
  double* of_parts = nullptr;    ///< [tensors, columns, parts]: what the parts have, on the way
  double* of_tensors = nullptr;  ///< [tensors, columns]
};
/// Of the tensor that has most.
int64_t parts_of(c10::Device device, const std::vector<ComparedRows>& tensors);

/// kErrorColumns of each tensor. An element without a z counts as one without an error. Of a tensor without rows the last four
/// are not written.
void error_columns(c10::Device device, const std::vector<ComparedRows>& tensors, Dtype dtype, bool only_outputs_rounded,
                   const Columns& columns);

/// How much |got - round(x)| may be at x: absolute + relative |round(x)|.
struct Tolerance {
  double relative = 0, absolute = 0;
};
constexpr size_t kMostTolerances = 2;

/// Largest |got - round(x)|, and its largest ratio to each tolerance: 1 + tolerances.size() columns. Infinity where one is not
/// finite and the other differs. Throws std::invalid_argument for more than kMostTolerances.
void field_columns(c10::Device device, const std::vector<ComparedRows>& tensors, Dtype dtype,
                   const std::vector<Tolerance>& tolerances, const Columns& columns);

/// The mantissas, from 1 to 2, of `count` elements from all over the tensor, or of all where it has no more; 0 of one that must
/// be 0: where its variance is. They depend on its size, not on who measures.
void sample_mantissas(c10::Device device, const ComparedRows& tensor, int64_t count, double* mantissas);

}  // namespace attnbench
