// A judge of its own for the tests of the judge.
#pragma once

#include <memory>

#include "harness/attention/emulator.hpp"
#include "harness/worker/test_calibration.hpp"
#include "harness/worker/verdict.hpp"

namespace attnbench::judge_test {

inline Judge make_judge(const Case& c, const Inputs& inputs, const Profile& profile, const Conventions& conventions,
                        OracleKind oracle) {
  const Outputs eager = emulate(c, inputs, eager_profile(), conventions.empty_row);
  return {
      std::make_shared<Yardstick>(c, inputs, profile, conventions.empty_row, oracle, eager, formula_alone(), /*kept_bytes=*/0),
      conventions};
}

}  // namespace attnbench::judge_test
