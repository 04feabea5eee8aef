// What a test reads of a case line that is refused.
#pragma once

#include <string>

#include "harness/run/case.hpp"

namespace attnbench {

/// The sentence, or "accepted".
inline std::string refusal_of_line(const std::string& line) {
  try {
    parse_case(line, "x.suite:3");
  } catch (const CaseError& error) {
    return error.what();
  }
  return "accepted";
}

}  // namespace attnbench
