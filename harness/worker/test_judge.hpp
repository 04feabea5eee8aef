// What the tests of the judge share: a judge of its own, right outputs, and verdicts to expect.
#pragma once

#include <memory>
#include <string>

#include <gtest/gtest.h>

#include "harness/attention/emulator.hpp"
#include "harness/attention/test_reference.hpp"
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

/// One case under one profile: inputs, the judge, and outputs that are right.
struct JudgedCase {
  explicit JudgedCase(const std::string& line, const Profile& profile = flash(), const Conventions* other = nullptr)
      : c(parse_case(line)),
        profile(profile),
        conventions(other ? *other : conventions_of(profile)),
        inputs(make_inputs_and_mask(c, conventions.poison)),
        judge(make_judge(c, inputs, profile, conventions, OracleKind::eigen)),
        right(emulate(c, inputs, profile, conventions.empty_row)) {}

  Outputs copy() const {
    return {right.o.clone(), right.lse.clone(), right.dq.clone(), right.dk.clone(), right.dv.clone(), right.kept};
  }

  Case c;
  Profile profile;
  Conventions conventions;
  Inputs inputs;
  Judge judge;
  Outputs right;
};

inline void expect_passes(const Verdict& verdict, const std::string& what) {
  EXPECT_EQ(verdict.status, Status::passed) << what << ": " << verdict.reason;
}

/// The verdict failed, by this gate of this tensor.
inline void expect_fails(const Verdict& verdict, const std::string& tensor, const std::string& gate) {
  EXPECT_EQ(verdict.status, Status::failed);
  EXPECT_NE(verdict.reason, "");
  ASSERT_EQ(verdict.errors.count(tensor), 1u) << tensor;
  const auto& gates = verdict.errors.at(tensor).gates;
  ASSERT_EQ(gates.count(gate), 1u) << tensor << " " << gate;
  EXPECT_EQ(gates.at(gate).verdict, Gate::Verdict::fail)
      << tensor << " " << gate << ": " << gates.at(gate).value << " of " << gates.at(gate).limit << "; " << verdict.reason;
}

inline const char* const kCausal = "attention hq=6 hkv=2 lq=129 d=64 dtype=bf16 mask=causal seed=11";

}  // namespace attnbench::judge_test
