// `attnbench list`: suites and their cases as text.
#pragma once

#include <string>
#include <vector>

#include "harness/run/suite.hpp"

namespace attnbench {

/// The names of all suites and how many cases each has, one a line.
std::string list_suites();

/// One canonical case a line; `explain`: cases that share a name, a reason, a source and what is expected of whom
/// are indented below these.
std::string list_cases(const std::vector<Suite>& suites, bool explain);

}  // namespace attnbench
