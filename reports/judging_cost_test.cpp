#include "reports/judging_cost.hpp"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "reports/test_run.hpp"

namespace attnbench {
namespace {

Record spender(const std::string& case_line, const std::string& backend, Pass pass, double fastest_call_s, Spending spent) {
  Record r;
  r.case_line = case_line;
  r.backend = backend;
  r.pass = pass;
  r.suite = "full";
  r.case_suite = "parity";
  r.spent = std::move(spent);
  r.spent.fastest_call_s = fastest_call_s;
  return r;
}

TEST(JudgingCost, IsInCallsOfEager) {
  RunData run;
  const char* one = "attention lq=64 d=64 dtype=fp32";
  run.records = {
      spender(one, "eager", Pass::backward, 0.01, {{{"oracle", {0.05, 2}}, {"gates", {0.01, 1}}, {"calls", {0.03, 4}}}, 0}),
      spender(one, "flash_varlen", Pass::forward, 0.001, {{{"poison", {0.02, 9}}, {"gates", {0.01, 1}}}, 0}),
      spender("attention lq=65 d=64 dtype=fp32", "eager", Pass::backward, 0.03,
              {{{"oracle", {0.07, 2}}, {"inputs", {0.04, 1}}}, 0}),
      spender("attention lq=64 d=64", "flash_varlen", Pass::forward, 0.001,
              {{{"oracle", {9, 1}}}, 0})};  // without eager: left out
  const TextTable table = judging_cost(run);
  ASSERT_EQ(table.rows.size(), 1u);
  // eager: (10 + 30) / 2 = 20 ms; all parts: 0.04 + 0.12 + 0.02 + 0.02 = 0.2 s of 3 results.
  EXPECT_EQ(texts(table.rows[0]), (Words{"parity", "fp32", "2", "20", "1.0", "3.0", "0.0", "0.5", "0.5", "1.5", "3.3"}));
}

TEST(JudgingCost, IsThatOfEachSuite) {
  RunData run;
  const Spending spent{{{"gates", {0.02, 1}}}, 0};
  run.records = {spender("attention lq=64 d=64", "eager", Pass::backward, 0.01, spent),
                 spender("attention lq=65 d=64", "eager", Pass::backward, 0.01, spent),
                 spender("attention lq=66 d=64", "eager", Pass::backward, 0.01, spent)};
  run.records[1].case_suite = "edge";
  run.records[2].case_suite = "";  // as records were before they said it
  const TextTable table = judging_cost(run);
  ASSERT_EQ(table.rows.size(), 3u);
  EXPECT_EQ(texts(table.rows[0])[0], "edge");
  EXPECT_EQ(texts(table.rows[1])[0], "full");
  EXPECT_EQ(texts(table.rows[2])[0], "parity");
}

TEST(JudgingCost, OfRecordsThatDoNotSayItIsNoTable) {
  EXPECT_TRUE(judging_cost(test_run()).rows.empty());
}

TEST(JudgingCost, EagerThatFailedIsNoMeasure) {
  RunData run;
  run.records = {spender("attention lq=64 d=64", "eager", Pass::backward, 0.01, {{{"oracle", {1, 1}}}, 0})};
  run.records[0].status = Status::failed;
  EXPECT_TRUE(judging_cost(run).rows.empty());
}

}  // namespace
}  // namespace attnbench
