#include "reports/audit_report.hpp"

#include <gtest/gtest.h>

#include "harness/run/json_reader.hpp"
#include "reports/test_run.hpp"

namespace attnbench {
namespace {

using Outcome = Invariance::Outcome;

Record audited(const std::string& backend, int64_t lq, std::vector<Invariance> invariance) {
  Record r;
  r.case_line = "attention d=64 lq=" + std::to_string(lq);
  r.backend = backend;
  r.device = "cpu";
  r.repro = "attnbench audit --case \"" + r.case_line + "\" --backend " + backend;
  r.invariance = std::move(invariance);
  return r;
}

Invariance equal(Relation relation, const std::string& tensor, bool promised = false) {
  return {relation, tensor, Outcome::equal, promised, "", 10, 0, 64};
}

Invariance differs(Relation relation, const std::string& tensor, int64_t changed) {
  return {relation, tensor, Outcome::differs, false, "", 10, 4, 64, changed, 2, "repeat 3 of 10", Element{0, 1, 2, 3}, 0.5, 0.25};
}

/// Two backends, three cases: `varies` differs in two of them.
RunData audit_run() {
  RunData run;
  run.records = {audited("varies", 1, {equal(Relation::repeats, "o"), equal(Relation::alone, "o")}),
                 audited("varies", 2, {differs(Relation::repeats, "o", 5), equal(Relation::alone, "o")}),
                 audited("varies", 3,
                         {differs(Relation::repeats, "o", 7),
                          {Relation::alone, "o", Outcome::not_supported, false, "the case has one sequence"}}),
                 audited("honest", 1, {equal(Relation::repeats, "o", true), equal(Relation::repeats, "lse", true)})};
  return run;
}

std::vector<std::string> texts_of(const std::vector<Cell>& row) {
  std::vector<std::string> texts;
  for (const Cell& cell : row) texts.push_back(cell.text);
  return texts;
}

TEST(AuditReport, HasARowABackendAndTensorAndAColumnARelation) {
  const TextTable table = invariance_table(audit_run());
  ASSERT_EQ(table.columns.size(), 4u) << "relations that nobody looked at have no column";
  EXPECT_EQ(table.columns[2].header, "repeats");
  EXPECT_EQ(table.columns[3].header, "alone");
  ASSERT_EQ(table.rows.size(), 3u);
  EXPECT_EQ(texts_of(table.rows[0]), (Words{"varies", "o", "differs 2/3", "equal"}));
  EXPECT_EQ(texts_of(table.rows[1]), (Words{"honest", "o", "equal*", "–"}));
  EXPECT_EQ(texts_of(table.rows[2]), (Words{"honest", "lse", "equal*", "–"}));
}

TEST(AuditReport, NamesThreadsOnACpuAndStreamsOnAGpu) {
  RunData run;
  run.records = {audited("a", 1, {equal(Relation::concurrency, "o")})};
  EXPECT_EQ(invariance_table(run).columns[2].header, "threads");
  run.records[0].device = "cuda:0";
  EXPECT_EQ(invariance_table(run).columns[2].header, "busy stream");
}

TEST(AuditReport, TellsEachDifferenceByItsFirstCase) {
  const std::string text = audit_console(audit_run(), {});
  EXPECT_TRUE(contains(text,
                       "Differences: 1\n"
                       "  varies, repeats: o differs in 5 of 64 elements, first at [0,1,2,3]: 0.25, was 0.5 (at most 2 ulp)\n"
                       "    2 of 3 cases, repeat 3 of 10 (4 of 10 differ)\n"
                       "    repro  attnbench audit --case \"attention d=64 lq=2\" --backend varies\n"))
      << text;
  const std::string markdown = audit_markdown(audit_run());
  EXPECT_TRUE(contains(markdown, "| varies | repeats | o | 7 | 64 | 2 | [0,1,2,3] | 0.5 | 0.25 | repeat 3 of 10 |")) << markdown;
}

TEST(AuditReport, ABrokenPromiseComesFirstAndIsCalledOne) {
  RunData run = audit_run();
  Invariance broken = differs(Relation::alone, "lse", 1);
  broken.promised = true;
  run.records.push_back(audited("honest", 2, {broken}));
  run.records.back().status = Status::failed;
  run.records.back().reason = "alone: lse differs";
  run.gated = {"honest"};
  const std::string text = audit_console(run, {});
  EXPECT_LT(text.find("honest, alone: lse differs"), text.find("varies, repeats: o differs"));
  EXPECT_TRUE(contains(text, "it promises that it does not")) << text;
  EXPECT_TRUE(contains(text, "differs 1/1*")) << text;
  EXPECT_TRUE(contains(text, "Red: 1\n  FAILED honest forward")) << text;
}

TEST(AuditReport, TheJsonHoldsEveryEntry) {
  const auto json = nlohmann::json::parse(audit_json(audit_run()));
  ASSERT_EQ(json["entries"].size(), 8u);
  EXPECT_EQ(json["entries"][2]["case"], "attention d=64 lq=2");
  EXPECT_EQ(json["entries"][2]["changed"], 5);
  EXPECT_EQ(json["entries"][2]["status"], "passed");
  EXPECT_EQ(json["entries"][5]["reason"], "the case has one sequence");
}

TEST(AuditReport, ARunWithoutComparedBitsHasNone) {
  const RunData run = test_run();
  EXPECT_FALSE(has_invariance(run));
  EXPECT_TRUE(has_invariance(audit_run()));
  EXPECT_TRUE(invariance_table(run).rows.empty());
}

}  // namespace
}  // namespace attnbench
