// What the tests of the backends share.
#pragma once

#include <string>

#include "harness/worker/backend.hpp"

namespace attnbench {

inline const Device kCpu{"cpu", 0, std::nullopt, "test"};

inline Case make_case(const std::string& keys) {
  return parse_case("attention " + keys);
}

}  // namespace attnbench
