// What becomes of a run whose worker crashes, hangs, talks rubbish or is not there.
#include <filesystem>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/exit_code.hpp"
#include "harness/run/test_attnbench.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

#ifdef __SANITIZE_ADDRESS__
constexpr const char* kEndOfACorruptHeap = "exited with code 1";
#else
constexpr const char* kEndOfACorruptHeap = "was killed by signal";  // SIGABRT or SIGSEGV: what was overwritten decides
#endif

TEST_F(Attnbench, ACrashCostsOneRunAndNamesTheSignal) {
  const Answer answer = run(cases(2), "--behaviour crash --on flash_varlen/backward --once " + path("once"));
  EXPECT_EQ(answer.exit_code, kExitGate) << answer.out;
  const RunData run = results();
  EXPECT_EQ(count(run, Status::passed), 7);
  const Record guilty = only(run, Status::error);
  EXPECT_EQ(guilty.backend, "flash_varlen");
  EXPECT_EQ(guilty.pass, Pass::backward);
  EXPECT_THAT(guilty.reason, HasSubstr("SIGSEGV"));
  EXPECT_THAT(guilty.reason, HasSubstr("in stage judge"));
  EXPECT_THAT(guilty.reason, HasSubstr("about to crash"));
}

TEST_F(Attnbench, EveryEndOfAWorkerIsSaid) {
  const std::vector<std::pair<std::string, std::string>> ends{
      {"exit", "exited with code 3"},
      {"abort", "SIGABRT"},
      {"lose-context", "the CUDA context failed: an illegal memory access"},
      {"corrupt-heap", kEndOfACorruptHeap},
      {"rubbish", "did not keep to the protocol"},
      {"nested", "expected a JSON object, got \"{\\\"result\\\":[[[["},
      {"cut", "exited with code 0"},
      {"unasked", "nobody asked for nobody forward"},
      {"hang", "0.5 s of silence"},
      {"trickle", "0.5 s of silence"},
      {"other-case", "got \"attention d=64 lq=99\""},
      {"pass-unjudged", "result.status: it says passed, and no tensor of it was judged"},
      {"pass-failing", "result.status: it says passed, and gate rms of o fails"},
      {"expect-otherwise", "result.expect: the case says equal, got must_throw"},
      {"forget", "without a result"}};
  for (const auto& [behaviour, sentence] : ends) {
    SCOPED_TRACE(behaviour);
    const Answer answer =
        run(joined(cases(1, behaviour), {"--timeout", "0.5"}), fmt::format("--behaviour {} --on eager/forward", behaviour));
    EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;  // eager is not gated: a finding
    const RunData run = results(behaviour);
    EXPECT_EQ(count(run, Status::passed), 3);
    const Record guilty = only(run, Status::error);
    EXPECT_EQ(guilty.backend, "eager");
    EXPECT_THAT(guilty.reason, HasSubstr(sentence));
  }
}

TEST_F(Attnbench, AWorkerThatAnswersSlowlyIsWaitedFor) {
  const Answer answer = run(joined(cases(1), {"--timeout", "1"}), "--delay-ms 400");
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_EQ(count(results(), Status::passed), 4);
}

TEST_F(Attnbench, GivesUpWhenNoWorkerCanBeKeptAlive) {
  for (const char* start : {"exit=1", "rubbish"}) {
    const Answer answer = run(cases(1), fmt::format("--start {}", start));
    EXPECT_EQ(answer.exit_code, kExitInfrastructure) << answer.out;
    EXPECT_THAT(answer.out, HasSubstr("no worker could be kept alive"));
    EXPECT_FALSE(fs::exists(folder_ / "out"));
  }
  const Answer early = run(cases(9), "--behaviour die-early");
  EXPECT_EQ(early.exit_code, kExitInfrastructure) << early.out;
  EXPECT_THAT(early.out, HasSubstr("3 cases in a row"));
  EXPECT_EQ(count(results(), Status::error), 12);
}

TEST_F(Attnbench, AWorkerThatRefusesItsDeviceIsQuoted) {
  const Answer answer = run(cases(1), "--start exit=2");
  EXPECT_EQ(answer.exit_code, kExitUsage);
  EXPECT_THAT(answer.out, HasSubstr("will not start"));
  EXPECT_FALSE(fs::exists(folder_ / "out"));
}

TEST_F(Attnbench, AWorkerThatIsNotThereIsSaid) {
  const Answer answer = run(joined(cases(1), {"--worker", "/no/such/worker"}), "none");
  EXPECT_EQ(answer.exit_code, kExitInfrastructure);
  EXPECT_THAT(answer.out, HasSubstr("/no/such/worker"));
}

}  // namespace
}  // namespace attnbench
