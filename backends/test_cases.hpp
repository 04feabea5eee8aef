// What the tests of the backends share.
#pragma once

#include <string>

#include "harness/run/test_device.hpp"
#include "harness/worker/backend.hpp"

namespace attnbench {

inline Case make_case(const std::string& keys) {
  return parse_case("attention " + keys);
}

}  // namespace attnbench
