// The constants of the formulas as verdict_gates.hpp gives them, and no factors: what tests can work out by hand.
#pragma once

#include "harness/run/calibration.hpp"

namespace attnbench::judge_test {

inline const Calibration& formula_alone() {
  static const Calibration calibration = [] {
    Calibration c;
    c.device = "cpu";
    c.constants = {.false_alarms = 1e-6,
                   .gain_deviations = 5.39,
                   .gain_floor = 0.2,
                   .truncation = 0x1p-26,
                   .ratio_margin = 0.05,
                   .ratio_deviations = 6,
                   .rms_floor = 0.5,
                   .z_floor = 6.5,
                   .lse = 4};
    return c;
  }();
  return calibration;
}

/// What a worker on a CPU judges by.
inline Calibration calibration_of_cpu() {
  return read_calibration(calibration_file("cpu"), "cpu");
}

}  // namespace attnbench::judge_test
