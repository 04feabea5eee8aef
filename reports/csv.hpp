// results.csv: tidy rows for pandas and spreadsheets (RFC 4180: comma, quotes doubled, lines end in \n).
#pragma once

#include <string>
#include <string_view>

#include "harness/run/run_data.hpp"

namespace attnbench {

/// One row for each (case, backend, pass) and each of its tensors (kind "tensor": errors and gates) and windows (kind
/// "window": times, a row for each regime); a record with neither has one row of kind "record". A field that does not apply is
/// empty; numbers that are not finite read nan, inf, -inf. Gates have three columns each: gate.NAME.value, .limit, .verdict.
std::string results_csv(const RunData& run);

/// Quoted if it holds a comma, a quote or a line break.
std::string csv_field(std::string_view text);

}  // namespace attnbench
