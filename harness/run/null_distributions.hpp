// From the records of correct implementations to factors, and from other records to what those factors would have accused.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "harness/run/alarms.hpp"
#include "harness/run/calibration.hpp"
#include "harness/run/run_data.hpp"

namespace attnbench {

/// Fewest results of a cell that has a factor of its own, and fewest cases and implementations behind them. `eager` and
/// `sdpa_math` are one: both are LibTorch's matrix products and softmax, and in fp32 agree with each other better than with a
/// third.
inline constexpr int64_t kFewestResults = 200, kFewestCases = 50;

/// A factor's least margin over the largest ratio seen: of fewer than kManyCases, and of more.
inline constexpr int64_t kManyCases = 200;
inline constexpr double kMarginOfFew = 2.5, kMarginOfMany = 1.5;
inline constexpr size_t kFewestImplementations = 2;

/// The factor of sorted ratios statistic / formula, at most 1. It is the larger of
///   the ratio that one tensor in a million exceeds, by an exponential tail through the quantiles 99 and 99.9 % (2000 results or
///   more, else 90 and 99 %): it falls more slowly than any sub-Gaussian one, so that the estimate errs upward;
///   1.5 times the largest seen, as a null that hardly varies may have rare cases that no quantile shows; 2.5 times that of fewer
///   than 200 cases: implementations agree, so that it is cases that count. 170 had shown little more than half of what another
///   one had.
/// The RMS of low precision and the bias where P is rounded have none, and the LSE's is at least one sigma:
/// null_distributions.cpp.
double factor_of(const std::vector<double>& sorted, int64_t cases);

/// Cells from the records of `before.backends`, less what is left out and tensors with a violated exact gate; constants and
/// everything else that is by hand stay as they are in `before`. The verdicts of the records, which older limits gave, play no
/// part.
Calibration calibrate(const RunData& run, const Calibration& before);

/// What the limits in force said of correct implementations.
struct CalibrationCheck {
  struct OfGate {
    int64_t judged = 0, no_power = 0, alarms = 0;
  };
  struct Accused {
    std::string backend, what, case_line, repro;
  };
  int64_t cases = 0;
  int64_t tensors = 0;                                          ///< distinct (case, tensor)
  int64_t results = 0;                                          ///< tensors of all backends
  int64_t without_power = 0;                                    ///< results that no gate had the power to judge: mistrusted
  std::map<std::pair<std::string, std::string>, OfGate> gates;  ///< by class (calibrated_as()) and gate
  std::vector<std::string> backends;                            ///< that were judged
  std::vector<Accused> alarms;
};

/// Of the backends of the run, less what `calibration` leaves out.
CalibrationCheck check_calibration(const RunData& run, const Calibration& calibration);

}  // namespace attnbench
