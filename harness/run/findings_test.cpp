// attnbench findings as a user meets it: what is red in a run, and what is left of it when it is shrunk.
#include <filesystem>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/exit_code.hpp"
#include "harness/run/test_attnbench.hpp"

namespace attnbench {
namespace {

using testing::HasSubstr;
using testing::Not;

class Findings : public Attnbench {
 protected:
  static constexpr const char* kWrong = "--wrong mask=causal --least-lq 65 --on flash_varlen/backward";

  void judge(const std::string& line, const std::string& worker) const {
    const Answer answer = run({"--case", line, "--out", path("out"), "--device", "cpu", "--check-only"}, worker);
    ASSERT_EQ(answer.exit_code, kExitGate) << answer.out;
  }
  std::string report() const { return read_text(folder_ / "out" / "findings.md"); }
};

TEST_F(Findings, AreWrittenByEveryRun) {
  judge("attention d=64 lq=300,200 mask=causal hq=2", kWrong);
  EXPECT_THAT(report(), HasSubstr("## Failures"));
  EXPECT_THAT(report(), HasSubstr("2 red results"));
  EXPECT_THAT(report(), HasSubstr("--case \"attention hq=2 d=64 lq=200 mask=causal\" --backend flash_varlen --pass backward"));
  EXPECT_THAT(report(), HasSubstr("unexplained"));
  const Answer answer = run({"findings", path("out")}, "none");
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("flash_varlen"));
  EXPECT_THAT(answer.out, HasSubstr("findings.md"));
  EXPECT_THAT(report(), Not(HasSubstr("Shrunk")));
}

TEST_F(Findings, AreFoundByTheFileOfTheRecordsToo) {
  judge("attention d=64 lq=200 mask=causal", kWrong);
  std::filesystem::remove(folder_ / "out" / "findings.md");
  const Answer answer = run({"findings", path("out/results.jsonl")}, "none");
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_THAT(report(), HasSubstr("## Failures"));
}

TEST_F(Findings, TakeAWorkerOnlyToShrink) {
  judge("attention d=64 lq=200 mask=causal", kWrong);
  const Answer answer = run({"findings", path("out"), "--device", "cpu"}, "none");
  EXPECT_EQ(answer.exit_code, kExitUsage);
  EXPECT_THAT(answer.out, HasSubstr("findings with --device: nothing is run without --shrink"));
}

TEST_F(Findings, AreShrunkWhereThatIsAskedFor) {
  judge("attention d=64 lq=300,200 mask=causal hq=2", kWrong);
  const Answer answer = run({"findings", path("out"), "--shrink", "--device", "cpu"}, kWrong);
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_THAT(report(), HasSubstr("Shrunk, in "));
  EXPECT_THAT(report(),
              HasSubstr("attnbench --case \"attention d=1 lq=65 lk=0 mask=causal\" --backend flash_varlen --pass backward"));
  EXPECT_THAT(report(), HasSubstr("from the smallest of the run: `attention hq=2 d=64 lq=200 mask=causal`"));
  EXPECT_EQ(results().records.size(), 8u) << "what was tried on the way is no result of the run";
}

TEST_F(Findings, OfAPlantedBackendAreShrunkByAWorkerThatHasIt) {
  const Answer answer = run({"--case", "attention d=64 lq=9", "--backend", "flash_varlen:caught", "--pass", "forward", "--out",
                             path("out"), "--device", "cpu", "--check-only"},
                            "--planted");
  ASSERT_EQ(count(results(), Status::failed), 1) << answer.out;
  run({"findings", path("out"), "--shrink", "--device", "cpu"});
  EXPECT_THAT(report(), HasSubstr("attnbench --case \"attention d=1 lq=0\" --backend flash_varlen:caught --pass forward"));
}

/// Wrong where it has to differ alone: by its case line it would pass.
TEST_F(Findings, AreShrunkByTheTermsOfTheirVerdict) {
  const char* worker = "--wrong expect=must_differ --least-lq 65 --on flash_varlen/backward";
  judge("attention d=64 lq=200 # expect=must_differ", worker);
  run({"findings", path("out"), "--shrink", "--device", "cpu"}, worker);
  EXPECT_THAT(report(), HasSubstr("attnbench --case \"attention d=1 lq=65 lk=0 # expect=must_differ\""));
}

TEST_F(Findings, WhatIsNotRedAgainIsSaidToBe) {
  judge("attention d=64 lq=100 mask=causal", kWrong);
  const Answer answer = run({"findings", path("out"), "--shrink", "--device", "cpu"}, "");
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_THAT(report(), HasSubstr("which was not red when it was run again alone"));
}

}  // namespace
}  // namespace attnbench
