// The two float64 oracles hold each other on every case of the suite parity: values, sigmas and the gradients given O.
#include <string>

#include <gtest/gtest.h>

#include "harness/attention/emulator.hpp"
#include "harness/attention/oracle.hpp"
#include "harness/attention/test_reference.hpp"
#include "harness/run/case_text.hpp"
#include "harness/run/suite.hpp"

namespace attnbench {
namespace {

using namespace judge_test;

constexpr auto kZero = Conventions::EmptyRow::zero;

TEST(TwoOraclesOnParity, AgreeOnEveryCase) {
  int64_t cases = 0;
  for (const SuiteCase& entry : load_suite("parity").cases) {
    const Case& c = entry.c;
    if (c.metadata.device == DeviceKind::cuda) continue;  // verdict_cuda_test compares these
    ++cases;
    const std::string line = format_case(c) + " ";
    const Inputs inputs = make_inputs(c, Conventions::Poison::nan);
    const Reference a = Oracle(OracleKind::eigen, c, inputs, flash(), kZero).reference();
    const Reference b = Oracle(OracleKind::torch, c, inputs, flash(), kZero).reference();
    expect_same(a, b, line);
    const at::Tensor o = emulate(c, inputs, flash(), kZero).o;
    const auto x = Oracle(OracleKind::eigen, c, inputs, flash(), kZero).given_output(a, o);
    const auto y = Oracle(OracleKind::torch, c, inputs, flash(), kZero).given_output(b, o);
    expect_same(x.dq, y.dq, line + "dq given o");
    expect_same(x.dk, y.dk, line + "dk given o");
  }
  EXPECT_GT(cases, 150);
}

TEST(TwoOraclesOnParity, WouldNotAgreeOnAnotherMask) {
  const Case c = parse_case("attention hq=2 hkv=1 lq=65 lk=67 d=64 mask=causal"),
             other = parse_case("attention hq=2 hkv=1 lq=65 lk=67 d=64 mask=causal align=top_left");
  const Inputs inputs = make_inputs(c, Conventions::Poison::nan);
  const Reference a = Oracle(OracleKind::eigen, c, inputs, flash(), kZero).reference();
  const Reference b = Oracle(OracleKind::torch, other, inputs, flash(), kZero).reference();
  EXPECT_GT(largest_difference_in_sigmas(a.o, b.o), 1);
  EXPECT_GT(largest_difference_in_sigmas(a.dk, b.dk), 1);
  EXPECT_GT(largest_relative_difference(a.o.variance, b.o.variance), 0.01);
}

}  // namespace
}  // namespace attnbench
