// The device of tests that need none in particular.
#pragma once

#include <optional>

#include "harness/run/declaration.hpp"

namespace attnbench {

inline const Device kCpu{"cpu", 0, std::nullopt, "test"};

}  // namespace attnbench
