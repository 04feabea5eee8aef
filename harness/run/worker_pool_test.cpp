// Several workers at once: the same outcomes as with one, whatever some of them do, and timed cases are alone.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/exit_code.hpp"
#include "harness/run/test_attnbench.hpp"
#include "harness/run/worker_pool.hpp"

namespace attnbench {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

std::vector<std::string> judged_cases(int count, const std::string& out, int workers) {
  std::string lines = "attention lq=1";
  for (int i = 2; i <= count; ++i) lines += fmt::format(",{}", i);
  return {"--case", lines + " d=64 # timed=no", "--out", out, "--device", "cuda", "--workers", std::to_string(workers)};
}

TEST_F(Attnbench, SeveralWorkersJudgeWhatOneWould) {
  EXPECT_EQ(run(judged_cases(60, path("one"), 1), "--delay-ms 5").exit_code, kExitOk);
  EXPECT_EQ(run(judged_cases(60, path("out"), 3), "--delay-ms 5").exit_code, kExitOk);
  EXPECT_EQ(outcomes(results()), outcomes(results("one")));
  EXPECT_FALSE(fs::exists(folder_ / "one" / "worker-2.log"));
  for (const char* log : {"worker.log", "worker-2.log", "worker-3.log"}) EXPECT_TRUE(fs::exists(folder_ / "out" / log)) << log;
}

TEST_F(Attnbench, ACrashOfOneOfSeveralWorkersCostsOneRun) {
  const std::string once = "--once " + path("done");
  const Answer answer = run(joined(judged_cases(40, path("out"), 3), {"--gate", "none"}),
                            "--delay-ms 5 --behaviour crash --on eager/backward " + once);
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_EQ(results().records.size(), 160u);
  EXPECT_THAT(only(results(), Status::error).reason, HasSubstr("signal 11"));
}

TEST_F(Attnbench, TimedCasesComeLastAndGoThroughOneWorker) {
  const std::string timed = "attention lq=500,501 d=64", judged = "attention lq=1,2,3,4,5,6,7,8,9 d=64 # timed=no";
  EXPECT_EQ(run({"--case", timed, "--case", judged, "--out", path("out"), "--device", "cuda", "--workers", "3"}, "--delay-ms 5")
                .exit_code,
            kExitOk);
  const RunData done = results();
  ASSERT_EQ(done.records.size(), 44u);
  for (size_t i = 0; i < done.records.size(); ++i)
    EXPECT_EQ(done.records[i].case_line.find("lq=50") != std::string::npos, i >= 36) << i << ": " << done.records[i].case_line;
}

TEST_F(Attnbench, WhatIsOnlyCheckedGoesThroughAllWorkersAndWhatIsAuditedThroughOne) {
  const std::vector<std::string> options{"--case", "attention lq=1,2,3,4,5,6,7,8,9,10 d=64", "--device", "cuda", "--workers",
                                         "2"};
  EXPECT_EQ(run(joined(options, {"--out", path("timed")}), "").exit_code, kExitOk);
  EXPECT_FALSE(fs::exists(folder_ / "timed" / "worker-2.log"));
  EXPECT_EQ(run(joined(options, {"--out", path("checked"), "--check-only"}), "").exit_code, kExitOk);
  EXPECT_TRUE(fs::exists(folder_ / "checked" / "worker-2.log"));
  EXPECT_EQ(run(joined({"audit", "--out", path("audited")}, options), "").exit_code, kExitOk);
  EXPECT_FALSE(fs::exists(folder_ / "audited" / "worker-2.log"));
}

TEST_F(Attnbench, WorkersThatAllDieEndTheRun) {
  const Answer answer = run({"--case", "attention lq=1,2,3,4,5,6,7,8,9,10,11,12 d=64 # timed=no", "--out", path("out"),
                             "--device", "cuda", "--workers", "3"},
                            "--behaviour die-early");
  EXPECT_EQ(answer.exit_code, kExitInfrastructure);
  EXPECT_THAT(answer.out, HasSubstr("no worker could be kept alive"));
}

TEST_F(Attnbench, ThereAreAsManyWorkersAsTheGpuHasMemoryFor) {
  const auto workers = [&](const std::string& gib, int64_t bytes_each) {
    return WorkerPool({{FAKE_WORKER, "--gpu-memory-gib", gib}, path("worker.log"), 60}, 8, bytes_each).workers();
  };
  constexpr int64_t kEach = int64_t{16} << 30;
  EXPECT_EQ(workers("40", kEach), 2);
  EXPECT_EQ(workers("8", kEach), 1);
  EXPECT_EQ(workers("200", kEach), 8);
  EXPECT_EQ(workers("40", 0), 8) << "as many as were asked for";
  EXPECT_EQ(workers("0", kEach), 8) << "it does not say how much it has";
}

TEST_F(Attnbench, SeveralWorkersAreForAGpu) {
  Answer answer = run({"--case", "attention lq=1 d=64", "--workers", "2"});
  EXPECT_EQ(answer.exit_code, kExitUsage);
  EXPECT_THAT(answer.out, HasSubstr("on a CPU one worker uses all cores"));
  answer = run({"--case", "attention lq=1 d=64", "--workers", "0", "--device", "cuda"});
  EXPECT_EQ(answer.exit_code, kExitUsage);
  EXPECT_THAT(answer.out, HasSubstr("a number from 1 to 64"));
}

}  // namespace
}  // namespace attnbench
