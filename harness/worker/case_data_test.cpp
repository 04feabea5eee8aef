// Which backends of a case are judged by one yardstick, and what the inputs notice.
#include "harness/worker/case_data.hpp"

#include <limits>

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include "harness/attention/emulator.hpp"
#include "harness/attention/test_reference.hpp"
#include "harness/run/test_device.hpp"
#include "harness/worker/test_calibration.hpp"

namespace attnbench {
namespace {

using namespace judge_test;

Conventions with_rows(Conventions::EmptyRow empty_row) {
  Conventions c;
  c.empty_row = empty_row;
  c.lse_empty = Conventions::LseEmpty::none;
  c.poison = Conventions::Poison::finite;
  c.padded_rows_zero = false;
  return c;
}

TEST(SealedInputs, AWriteToTheFirstOrLastByteOfAnyOfThemIsSeen) {
  // 9 rows of 3 heads of 5 channels in bf16: the storages are no multiples of 8 bytes.
  for (const char* line : {"attention hq=3 lens=4+5 d=5", "attention hq=3 lens=4+5 d=5 layout=padded pad=left",
                           "attention hq=3 lens=4+5 d=5 sink=on", "attention hq=3 lens=4+5 d=5 strides=transposed",
                           "attention hq=3 lens=4+5 d=5 layout=padded strides=unaligned"}) {
    SealedInputs inputs(parse_case(line), Conventions::Poison::nan, kCpu);
    EXPECT_EQ(inputs.overwritten(), "");
    for (const auto& [name, tensor] : named_tensors(inputs.get())) {
      auto* const bytes = static_cast<char*>(tensor.storage().mutable_data());
      for (const size_t at : {size_t(0), tensor.storage().nbytes() - 1}) {
        bytes[at] ^= 1;
        EXPECT_EQ(inputs.overwritten(), name) << line << ", byte " << at;
        bytes[at] ^= 1;
      }
    }
    EXPECT_EQ(inputs.overwritten(), "");
  }
}

TEST(SealedInputs, LentTensorsHaveStridesOfTheirOwn) {
  const SealedInputs inputs(parse_case("attention hq=3 lens=4+5 d=8"), Conventions::Poison::nan, kCpu);
  const std::vector<int64_t> strides = inputs.get().v.strides().vec();
  inputs.lend().v.unsafeGetTensorImpl()->set_sizes_and_strides(inputs.get().v.sizes(), {24, 0, 1});
  EXPECT_EQ(inputs.get().v.strides().vec(), strides);
}

TEST(SealedInputs, WhatIsWrittenLateIsNanUntilThen) {
  SealedInputs inputs(parse_case("attention hq=3 lens=4+5 d=8"), Conventions::Poison::nan, kCpu);
  bool was_nan = false;
  inputs.write_late(&Inputs::v, [&] { was_nan = inputs.get().v.isnan().all().item<bool>(); });
  EXPECT_TRUE(was_nan);
  EXPECT_EQ(inputs.overwritten(), "");
}

TEST(SealedInputs, NegatedHeadsAreThoseAskedForAndUndone) {
  SealedInputs inputs(parse_case("attention hq=4 hkv=2 lens=4+5 d=8 layout=padded"), Conventions::Poison::nan, kCpu);
  const at::Tensor v = inputs.get().v.clone(), dout = inputs.get().dout.clone();
  inputs.negate_heads({false, true}, {true, false});
  EXPECT_TRUE(at::equal(inputs.get().v.select(-2, 0).nan_to_num(), v.select(-2, 0).nan_to_num()));
  EXPECT_TRUE(at::equal(inputs.get().v.select(-2, 1).nan_to_num(), -v.select(-2, 1).nan_to_num()));
  for (const int64_t head : {0, 1}) EXPECT_TRUE(at::equal(inputs.get().dout.select(-2, head), -dout.select(-2, head)));
  for (const int64_t head : {2, 3}) EXPECT_TRUE(at::equal(inputs.get().dout.select(-2, head), dout.select(-2, head)));
  EXPECT_EQ(inputs.overwritten(), "v, dout");
  inputs.negate_heads({}, {});
  EXPECT_EQ(inputs.overwritten(), "") << "to the bit, NaN included";
}

TEST(SealedInputs, AWriteIsSeenWhilePaddingIsFiniteAndPaddingIsNanAgain) {
  SealedInputs inputs(parse_case("attention hq=2 lens=5+4 d=8 layout=padded"), Conventions::Poison::nan, kCpu);
  ASSERT_TRUE(inputs.get().k.isnan().any().item<bool>());
  {
    const SealedInputs::FinitePoison finite(inputs);
    EXPECT_FALSE(inputs.get().k.isnan().any().item<bool>());
    EXPECT_EQ(inputs.overwritten(), "");
    auto* const bytes = static_cast<char*>(inputs.get().k.storage().mutable_data());
    bytes[3] ^= 1;
    EXPECT_EQ(inputs.overwritten(), "k");
    bytes[3] ^= 1;
    bytes[inputs.get().k.storage().nbytes() - 1] ^= 1;  // padding
    EXPECT_EQ(inputs.overwritten(), "k");
  }
  EXPECT_EQ(inputs.overwritten(), "");
  EXPECT_TRUE(inputs.get().k.isnan().any().item<bool>());
}

TEST(CaseData, EmptyRowsAreJudgedByTheBackendsOwnConvention) {
  CaseData data(parse_case("attention hq=2 lens=9+5 klens=4+0 d=32 layout=padded mask=causal"), kCpu,
                judge_test::formula_alone());
  const Conventions zero = with_rows(Conventions::EmptyRow::zero), uniform = with_rows(Conventions::EmptyRow::uniform);
  const Inputs& inputs = data.inputs(Conventions::Poison::finite).get();
  for (const auto& [own, other] : {std::pair{zero, uniform}, std::pair{uniform, zero}}) {
    const Outputs right = emulate(data.test_case(), inputs, flash(), own.empty_row);
    const Verdict verdict = data.judge(flash(), own, OracleKind::eigen).judge(right, Pass::forward);
    EXPECT_EQ(verdict.status, Status::passed) << verdict.reason;
    EXPECT_EQ(data.judge(flash(), other, OracleKind::eigen).judge(right, Pass::forward).status, Status::failed);
  }
}

TEST(CaseData, TheLseOfAnEmptyRowIsJudgedByTheBackendsOwnConvention) {
  CaseData data(parse_case("attention hq=2 lq=9 lk=4 d=32 mask=causal"), kCpu, judge_test::formula_alone());
  const Inputs& inputs = data.inputs(Conventions::Poison::nan).get();
  const std::pair<Conventions::LseEmpty, double> kinds[] = {{Conventions::LseEmpty::minus_infinity, -INFINITY},
                                                            {Conventions::LseEmpty::plus_infinity, INFINITY},
                                                            {Conventions::LseEmpty::zero, 0}};
  for (const auto& [kind, value] : kinds) {
    Outputs x = emulate(data.test_case(), inputs, flash(), Conventions::EmptyRow::zero);
    ASSERT_TRUE((x.lse.narrow(0, 0, 5) == -INFINITY).all().item<bool>());
    x.lse.narrow(0, 0, 5).fill_(value);
    for (const auto& [declared, ignored] : kinds) {
      Conventions conventions;
      conventions.lse_empty = declared;
      const Verdict verdict = data.judge(flash(), conventions, OracleKind::eigen).judge(x, Pass::forward);
      EXPECT_EQ(verdict.status, declared == kind ? Status::passed : Status::failed) << value << ": " << verdict.reason;
    }
  }
}

TEST(CaseData, AProfileThatRoundsOtherwiseHasItsOwnYardstick) {
  CaseData data(parse_case("attention hq=2 lq=200 d=64"), kCpu, judge_test::formula_alone());
  const Inputs& inputs = data.inputs(Conventions::Poison::nan).get();
  const Outputs rounded = emulate(data.test_case(), inputs, flash(), Conventions::EmptyRow::zero);
  EXPECT_EQ(data.judge(flash(), {}, OracleKind::eigen).judge(rounded, Pass::forward).status, Status::passed);
  EXPECT_EQ(data.judge(inside(), {}, OracleKind::eigen).judge(rounded, Pass::forward).status, Status::failed)
      << "P rounded by a backend that declares float32 inside";
}

}  // namespace
}  // namespace attnbench
