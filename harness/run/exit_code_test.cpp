#include "harness/run/exit_code.hpp"

#include <csignal>
#include <filesystem>
#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/case.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/interrupt.hpp"
#include "harness/run/run_data.hpp"

namespace attnbench {
namespace {

using testing::HasSubstr;

template <class E>
CommandEnd end_with(const E& error) {
  return end_of_command(std::make_exception_ptr(error));
}

TEST(ExitCode, ASentenceOfOursIsPrintedAsItStands) {
  EXPECT_EQ(end_with(UsageError("no such option")).exit_code, kExitUsage);
  EXPECT_EQ(end_with(UsageError("no such option")).sentence, "no such option");
  EXPECT_EQ(end_with(CaseError("a case")).exit_code, kExitUsage);
  EXPECT_EQ(end_with(RunError("a run")).exit_code, kExitUsage);
  EXPECT_EQ(end_with(std::filesystem::filesystem_error("a path", std::error_code())).exit_code, kExitUsage);
  EXPECT_EQ(end_with(InfrastructureError("no worker")).exit_code, kExitInfrastructure);
  EXPECT_EQ(end_with(NothingMatched("nothing")).exit_code, kExitNoMatch);
}

TEST(ExitCode, WhatNobodyForesawIsAnErrorInsideAttnbench) {
  const CommandEnd end = end_with(std::out_of_range("vector::at"));
  EXPECT_EQ(end.exit_code, kExitInfrastructure);
  EXPECT_THAT(end.sentence, HasSubstr("an error inside attnbench"));
  EXPECT_THAT(end.sentence, HasSubstr("vector::at"));
  EXPECT_EQ(end_with(7).exit_code, kExitInfrastructure);
  EXPECT_THAT(end_with(7).sentence, HasSubstr("an error inside attnbench"));
}

TEST(ExitCode, ASignalIsSaidAsAShellSaysIt) {
  EXPECT_EQ(exit_code_of_signal(SIGINT), 128 + SIGINT);
  EXPECT_EQ(exit_code_of_signal(SIGTERM), 128 + SIGTERM);
  EXPECT_EQ(end_with(Interrupted(SIGTERM)).exit_code, kExitTerminated);
  EXPECT_EQ(end_with(Interrupted(SIGTERM)).sentence, "");
}

}  // namespace
}  // namespace attnbench
