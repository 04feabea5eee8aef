// Numbers as people read them: three significant digits, units chosen for a whole table.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace attnbench {

/// Three significant digits ("0.0412", "4.12", "412"); whole numbers from 1000 on ("12345"), exponents where they are shorter
/// ("1.23e-07"); "nan", "inf", "-inf".
std::string significant(double value);

/// "312 B", "1.21 MiB".
std::string bytes_text(int64_t bytes);

/// At least one value.
double median_of(std::vector<double> values);

/// A unit and how many of the base unit make one.
struct Unit {
  std::string name;
  double size = 1;
};

/// Unit for a table of times given in microseconds: the largest in which the smallest time is at least 1.
Unit time_unit(std::span<const double> microseconds);

/// Unit for a table of rates given in TFLOP/s: TFLOP/s where the largest is at least 1, else GFLOP/s.
Unit rate_unit(std::span<const double> tflops);

}  // namespace attnbench
