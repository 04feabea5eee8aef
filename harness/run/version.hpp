// Versions of libraries, compared number by number: "2.10.0" is later than "2.9.1".
#pragma once

#include <string_view>

namespace attnbench {

/// Below, equal to or above 0, as `a` is earlier than, equal to or later than `b`. Missing numbers are 0; what follows the
/// numbers ("+cu130", ".post1") is ignored; a text that starts with no number ("main") is later than every number.
int compare_versions(std::string_view a, std::string_view b);

}  // namespace attnbench
