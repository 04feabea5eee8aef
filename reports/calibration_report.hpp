// A calibration in words: what factor each gate has in each class, and what a check of the limits counted.
#pragma once

#include <string>

#include "harness/run/null_distributions.hpp"
#include "reports/text_table.hpp"

namespace attnbench {

/// A row a class, dtype, gate and tensor: results, and least and largest factor of its cells.
TextTable factor_table(const Calibration& calibration);

/// A row a class and gate: judged, without power, alarms.
TextTable check_table(const CalibrationCheck& check);

std::string calibration_console(const Calibration& calibration, const TextStyle& style);
std::string check_console(const CalibrationCheck& check, const TextStyle& style);

}  // namespace attnbench
