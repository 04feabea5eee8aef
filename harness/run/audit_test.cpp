// attnbench audit: what it asks of a worker, what it writes and prints, and its exit codes.
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "harness/run/exit_code.hpp"
#include "harness/run/test_attnbench.hpp"

namespace attnbench {
namespace {

using testing::HasSubstr;
using testing::Not;

class AuditRun : public Attnbench {
 protected:
  Answer audit(const std::string& worker, const std::vector<std::string>& more = {}) const {
    return run(joined({"audit", "--case", "attention lq=1,2 d=64", "--out", path("out")}, more), worker);
  }
};

TEST_F(AuditRun, ThatFindsNothingSaysThatAllIsEqual) {
  const Answer answer = audit("--promises");
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("equal*"));
  EXPECT_THAT(answer.out, Not(HasSubstr("differs")));
  for (const Record& record : results().records) {
    EXPECT_EQ(record.invariance.at(0).compared, 100) << "unless --repeats says otherwise";
    EXPECT_FALSE(record.time);
  }
  for (const char* report : {"audit.md", "audit.json", "summary.md"})
    EXPECT_TRUE(std::filesystem::exists(folder_ / "out" / report)) << report;
}

TEST_F(AuditRun, ABrokenPromiseIsAFailureOfAGatedBackendAndAFindingOfAnother) {
  const Answer gated = audit("--promises --varies flash_varlen");
  EXPECT_EQ(gated.exit_code, kExitGate) << gated.out;
  EXPECT_THAT(gated.out, HasSubstr("differs 2/2*"));
  EXPECT_THAT(gated.out, HasSubstr("flash_varlen, repeats: o differs in 3 of 64 elements, first at [0,1,2,3]: 0.25, was 0.5"));
  EXPECT_THAT(gated.out, HasSubstr("repeat 37 of 100"));
  std::filesystem::remove_all(folder_ / "out");
  const Answer other = audit("--promises --varies eager");
  EXPECT_EQ(other.exit_code, kExitOk) << other.out;
  EXPECT_THAT(other.out, HasSubstr("FAILED eager forward"));
  EXPECT_THAT(other.out, HasSubstr("4 findings in others"));
}

TEST_F(AuditRun, WhatNobodyPromisedIsReportedAndNotRed) {
  const Answer answer = audit("--varies flash_varlen");
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("differs 2/2\n"));
  EXPECT_THAT(answer.out, Not(HasSubstr("FAILED")));
  const auto json = nlohmann::json::parse(read_text(folder_ / "out" / "audit.json"));
  EXPECT_EQ(json["entries"].size(), 8u);
  EXPECT_EQ(json["entries"][0]["backend"], "flash_varlen");
  EXPECT_EQ(json["entries"][0]["outcome"], "differs");
  EXPECT_EQ(json["entries"][0]["first"], nlohmann::json({0, 1, 2, 3}));
  EXPECT_THAT(read_text(folder_ / "out" / "audit.md"), HasSubstr("| flash_varlen | repeats | o | 3 | 64 | 1 | [0,1,2,3] |"));
  EXPECT_THAT(run({"report", path("out")}, "none").out, HasSubstr("differs 2/2"));
}

TEST_F(AuditRun, ACrashCostsOneEntry) {
  const Answer answer = audit("--behaviour crash --on eager/backward --once " + path("once"));
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_EQ(results().records.size(), 8u);
  EXPECT_EQ(count(results(), Status::error), 1);
  EXPECT_THAT(answer.out, HasSubstr("ERROR eager backward"));
}

TEST_F(AuditRun, ReproLinesAuditAgain) {
  audit("", {"--repeats", "7"});
  const Record first = results().records.front();
  EXPECT_EQ(first.invariance.at(0).compared, 7);
  EXPECT_EQ(first.repro,
            "attnbench audit --case \"attention d=64 lq=1\" --backend flash_varlen --pass forward --repeats 7 --device cpu");
}

TEST_F(AuditRun, BadOptionsAreSentences) {
  for (const char* repeats : {"1", "-3", "1000001"}) {
    const Answer answer = audit("", {"--repeats", repeats});
    EXPECT_EQ(answer.exit_code, kExitUsage);
    EXPECT_THAT(answer.out, HasSubstr("expected a number from 2 to 1000000"));
  }
  EXPECT_EQ(audit("", {"--backend", "nobody"}).exit_code, kExitUsage);
  audit("");
  EXPECT_EQ(run({"--resume", path("out")}).exit_code, kExitUsage);
}

TEST_F(AuditRun, TakesTheSuiteThatComesWithTheProgram) {
  const Answer answer = run({"audit", "--backend", "eager", "--gate", "all", "--out", path("out")});
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_EQ(results().records.front().suite, "audit");
}

}  // namespace
}  // namespace attnbench
