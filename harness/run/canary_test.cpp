// Canaries as a user meets them: planted backends that a suite's case runs beside the real ones, with the fake worker's defects.
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/exit_code.hpp"
#include "harness/run/test_attnbench.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;
using testing::UnorderedElementsAre;

class Canaries : public Attnbench {
 protected:
  Answer run_with(const std::string& canary, const std::vector<std::string>& more = {},
                  const std::string& worker = "--planted") const {
    std::ofstream(folder_ / "two.suite") << "attention d=64 lq=1,2 mask=causal # timed=no canary=" << canary << "\n";
    return run(joined({"--suite", path("two.suite"), "--out", path("out")}, more), worker);
  }
};

TEST_F(Canaries, ThatAreCaughtShowInTheLastSentenceAlone) {
  const Answer answer = run_with("flash_varlen:caught+eager:caught");
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_THAT(answer.out,
              HasSubstr("passed: 4 judged, 0 red, 0 findings in others; gated: flash_varlen; 4 of 4 canaries caught"));
  EXPECT_EQ(results().records.size(), 8u) << "two cases, two passes, two real backends";
  EXPECT_EQ(results().canaries.size(), 8u);
  EXPECT_TRUE(results().is_complete);
  for (const char* report : {"results.csv", "summary.md", "benchmark.json"})
    EXPECT_THAT(read_text(folder_ / "out" / report), Not(HasSubstr("flash_varlen:caught"))) << report;
  const Answer report = run({"report", path("out")}, "none");
  EXPECT_EQ(report.exit_code, kExitOk) << report.out;
  EXPECT_THAT(report.out, Not(HasSubstr("flash_varlen:caught")));
}

TEST_F(Canaries, OneThatIsNotCaughtFailsTheRun) {
  const Answer answer = run_with("flash_varlen:caught+flash_varlen:survives");
  EXPECT_EQ(answer.exit_code, kExitGate) << answer.out;
  EXPECT_THAT(answer.out,
              HasSubstr("FAILED: canary flash_varlen:survives was not caught: a judge that lets it pass proves nothing; "
                        "attnbench --case \"attention d=64 lq=1 mask=causal\" --backend flash_varlen:survives"));
  EXPECT_THAT(answer.out, HasSubstr("2 of 4 canaries caught"));
}

TEST_F(Canaries, RunWhereTheirRealBackendRuns) {
  EXPECT_THAT(run_with("flash_varlen:survives", {"--backend", "eager"}).out, Not(HasSubstr("canar")));
  EXPECT_TRUE(results().canaries.empty());
  fs::remove_all(folder_ / "out");
  run_with("flash_varlen:survives", {"--backend", "flash_varlen", "--pass", "forward", "--filter", "lq=2"});
  ASSERT_EQ(results().canaries.size(), 1u);
  EXPECT_EQ(results().canaries.front().pass, Pass::forward);
}

TEST_F(Canaries, AWorkerWithoutPlantedBackendsHasNone) {
  const Answer answer = run_with("flash_varlen:survives", {}, "");
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_THAT(answer.out, Not(HasSubstr("canar")));
}

TEST_F(Canaries, ShardsKeepThem) {
  run_with("flash_varlen:survives", {"--shard", "1/2"});
  fs::rename(folder_ / "out", folder_ / "one");
  run_with("flash_varlen:survives", {"--shard", "2/2"});
  const Answer merged = run({"merge", path("one"), path("out"), "--out", path("whole")}, "none");
  EXPECT_EQ(merged.exit_code, kExitGate) << merged.out;
  EXPECT_THAT(merged.out, HasSubstr("0 of 2 canaries caught"));
}

TEST_F(Canaries, ThatNobodyHasAreRefused) {
  const Answer answer = run_with("flash_varlen:caught+flash_varlen:cuaght");
  EXPECT_EQ(answer.exit_code, kExitUsage) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("two.suite:1: canary=flash_varlen:cuaght: no such planted backend"));
  EXPECT_THAT(answer.out, HasSubstr("did you mean 'flash_varlen:caught'?"));
  EXPECT_FALSE(fs::exists(folder_ / "out"));
}

TEST_F(Canaries, ThatAreNoPlantedBackendsAreRefused) {
  const Answer answer = run_with("flash_varlen");
  EXPECT_EQ(answer.exit_code, kExitUsage);
  EXPECT_THAT(answer.out, HasSubstr("canary=flash_varlen: expected planted backends"));
}

}  // namespace
}  // namespace attnbench
