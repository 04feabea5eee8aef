// attnbench fuzz as a user meets it: a defect that random cases find, and what is left of them.
#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "harness/run/exit_code.hpp"
#include "harness/run/fuzz.hpp"
#include "harness/run/gate.hpp"
#include "harness/run/random_case.hpp"
#include "harness/run/test_attnbench.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class Fuzz : public Attnbench {
 protected:
  Answer fuzz(const std::vector<std::string>& options, const std::string& worker = "") const {
    return run(joined({"fuzz", "--out", path("out"), "--device", "cpu"}, options), worker);
  }
  std::string report() const { return read_text(folder_ / "out" / kFuzzFile); }
};

TEST_F(Fuzz, WithoutADefectItPasses) {
  const Answer answer = fuzz({"--count", "40", "--seed", "5"});
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  const RunData run = results();
  ASSERT_EQ(run.records.size(), 160u);
  EXPECT_TRUE(run.warnings.empty());
  for (uint64_t i = 0; i < 40; ++i) EXPECT_EQ(run.records[4 * i].case_line, format_case(random_case(5, i)));
  EXPECT_EQ(run.records.front().suite, "fuzz");
  EXPECT_THAT(report(), HasSubstr("--seed 5, cases 0 to 39; red results of gated backends: 0\n"));
  for (const char* file : {"results.csv", "summary.md", "benchmark.json"})
    EXPECT_TRUE(fs::exists(folder_ / "out" / file)) << file;
}

TEST_F(Fuzz, ADefectIsFoundShrunkAndPrinted) {
  const Answer answer = fuzz({"--count", "150"}, "--wrong mask=causal --least-lq 65 --on flash_varlen/backward");
  EXPECT_EQ(answer.exit_code, kExitGate) << answer.out;
  const std::string repro =
      "attnbench --case \"attention d=1 lq=65 lk=0 mask=causal\" --backend flash_varlen --pass backward --device cpu";
  EXPECT_THAT(answer.out, HasSubstr("\n" + repro + "\n"));
  EXPECT_THAT(report(), HasSubstr("\n" + repro + "\n"));
  const RunData run = results();
  EXPECT_EQ(run.records.size(), 600u) << "what was tried on the way is no result of the run";
  const int red = count(run, Status::failed);
  EXPECT_GE(red, 2);
  EXPECT_THAT(report(), HasSubstr(fmt::format("red results of gated backends: {}\n", red)));
  const Record& first = *std::ranges::find(run.records, Status::failed, &Record::status);
  EXPECT_THAT(report(), HasSubstr(fmt::format("## flash_varlen backward: failed, {} cases\n\nsmallest, after ", red)));
  EXPECT_THAT(report(), HasSubstr("; the first:\n"));
  EXPECT_THAT(report(), HasSubstr("\n" + first.case_line + "\n"));
}

TEST_F(Fuzz, OfManyRedCasesOnlySomeAreShrunk) {
  const Answer answer = fuzz({"--count", "150", "--pass", "forward", "--backend", "flash_varlen"}, "--status failed");
  EXPECT_EQ(answer.exit_code, kExitGate) << answer.out;
  const int others = count(results(), Status::failed) - kMostShrunk;
  ASSERT_GT(others, 1);
  EXPECT_THAT(report(), HasSubstr(fmt::format("## flash_varlen forward: failed, {} cases\n\nsmallest, after ", kMostShrunk)));
  EXPECT_THAT(report(), HasSubstr("\nattention d=1 lq=0\n"));
  EXPECT_THAT(report(),
              HasSubstr(fmt::format(
                  "## flash_varlen forward: failed, {} cases\n\nNot shrunk: 16 others of this backend and pass are.", others)));
  const std::string text = report();
  std::string left = text.substr(text.find("Not shrunk"));
  int repros = 0;
  for (size_t at = 0; (at = left.find("attnbench --case", at)) != std::string::npos; ++at) ++repros;
  EXPECT_EQ(repros, others) << "each can be run again";
}

TEST_F(Fuzz, FindingsOfBackendsAndPassesAreToldApart) {
  const Answer answer = fuzz({"--count", "12", "--gate", "all"}, "--status failed");
  EXPECT_EQ(answer.exit_code, kExitGate) << answer.out;
  for (const char* backend : {"flash_varlen", "eager"})
    for (const char* pass : {"forward", "backward"}) {
      const std::string heading = fmt::format("\n## {} {}: failed, ", backend, pass), text = report();
      ASSERT_THAT(text, HasSubstr(heading));
      const std::string story = text.substr(text.find(heading), text.find("\n## ", text.find(heading) + 1) - text.find(heading));
      EXPECT_THAT(story, HasSubstr(fmt::format("--backend {} --pass {} ", backend, pass)));
      EXPECT_THAT(story, testing::ContainsRegex("found as number [0-9]+, [0-9]+"));
    }
}

TEST_F(Fuzz, APlantedBackendIsShrunkWhereItIsGated) {
  const std::vector<std::string> planted{"--count", "20", "--backend", "flash_varlen:caught", "--pass", "forward"};
  const Answer answer = fuzz(joined(planted, {"--gate", "flash_varlen:caught"}));
  EXPECT_EQ(answer.exit_code, kExitGate) << answer.out;
  EXPECT_THAT(report(), HasSubstr("## flash_varlen:caught forward: failed, "));
  EXPECT_THAT(report(), HasSubstr("--backend flash_varlen:caught --pass forward --device cpu\n"));
}

TEST_F(Fuzz, ACrashIsShrunkToo) {
  const Answer answer = fuzz({"--count", "3", "--backend", "flash_varlen"}, "--behaviour crash --on flash_varlen/forward");
  EXPECT_EQ(answer.exit_code, kExitGate) << answer.out;
  EXPECT_EQ(count(results(), Status::error), 3);
  EXPECT_THAT(report(), HasSubstr("\nattention d=1 lq=0\n"));
  EXPECT_THAT(report(), HasSubstr("signal 11"));
}

TEST_F(Fuzz, ADeathBeforeAnyBackendBeginsIsShrunkToo) {
  const Answer answer = fuzz({"--count", "2", "--backend", "flash_varlen", "--pass", "forward"}, "--behaviour die-early");
  EXPECT_EQ(answer.exit_code, kExitGate) << answer.out;
  EXPECT_THAT(report(), HasSubstr("\nattention d=1 lq=0\n"));
  EXPECT_THAT(report(), HasSubstr("exited with code 5 before any stage"));
}

TEST_F(Fuzz, WhatIsNotRedAgainIsNotShrunk) {
  const Answer answer =
      fuzz({"--count", "3", "--backend", "flash_varlen"}, "--behaviour crash --on flash_varlen/forward --once " + path("done"));
  EXPECT_EQ(answer.exit_code, kExitGate) << answer.out;
  EXPECT_THAT(report(), HasSubstr("Not shrunk: not red when run again, alone.\n\nnumber 0: "));
}

TEST_F(Fuzz, ADefectOfWhatIsNotGatedIsAFinding) {
  const Answer answer = fuzz({"--count", "20"}, "--wrong mask=causal --on eager/forward");
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_GT(count(results(), Status::failed), 0);
  EXPECT_THAT(report(), HasSubstr("red results of gated backends: 0\n"));
}

TEST_F(Fuzz, GoesOnUntilItsMinutesAreOver) {
  const Answer answer = fuzz({"--minutes", "0.02"}, "--delay-ms 1");
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  const size_t records = results().records.size();
  EXPECT_GE(records, 256u) << "it begins with a batch";
  EXPECT_EQ(records % 256, 0u) << "and ends with one";
  EXPECT_TRUE(results().is_complete);
}

/// Ctrl-C, a full disk, a machine that was switched off: what is left of a run must not look like a whole one.
TEST_F(Fuzz, OneThatWasCutIsIncomplete) {
  const fs::path file = folder_ / "out" / "results.jsonl";
  for (const std::vector<std::string>& length : {std::vector<std::string>{"--count", "20"}, {"--minutes", "0.001"}}) {
    ASSERT_EQ(fuzz(length).exit_code, kExitOk);
    const std::string whole = read_text(file);
    EXPECT_TRUE(results().is_complete);
    std::string cut = whole;
    cut.erase(cut.rfind('\n', cut.size() - 2) + 1);  // its last line
    if (length.front() == "--count") cut.erase(cut.rfind("{\"backend", cut.size() - 2));
    std::ofstream(file) << cut;
    const RunData left = results();
    EXPECT_FALSE(left.is_complete) << length.front();
    EXPECT_EQ(apply_gate(left).exit_code, kExitInfrastructure) << apply_gate(left).sentence;
    const Answer report = run({"report", path("out")}, "none");
    EXPECT_THAT(report.out, HasSubstr("results are here: the run has not ended; attnbench fuzz has to be run again"));
    fs::remove_all(folder_ / "out");
  }
}

TEST_F(Fuzz, AnInterruptKeepsWhatWasJudged) {
  const pid_t process = start({"fuzz", "--out", path("out"), "--device", "cpu"}, "--delay-ms 5");
  wait_for(8);
  kill(process, SIGINT);
  const Answer answer = finish(process);
  EXPECT_EQ(answer.exit_code, kExitInterrupted) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("interrupted; what was judged is in"));
  EXPECT_GT(lines_written(), 8u) << "the header, records and comparisons";
  EXPECT_FALSE(results().records.empty());
  const Answer again = run({"--resume", path("out")});
  EXPECT_EQ(again.exit_code, kExitUsage);
  EXPECT_THAT(again.out, HasSubstr("was not made by a run; cannot be resumed"));
}

TEST_F(Fuzz, AnInterruptWhileItShrinksLeavesAllThatIsRedInItsReport) {
  const pid_t process =
      start({"fuzz", "--count", "30", "--pass", "forward", "--backend", "flash_varlen", "--out", path("out"), "--device", "cpu"},
            "--status failed --delay-ms 20");
  wait_for(31);
  while (!fs::exists(folder_ / "out" / kFuzzFile)) usleep(1000);
  kill(process, SIGINT);
  EXPECT_EQ(finish(process).exit_code, kExitInterrupted);
  const int red = count(results(), Status::failed);
  ASSERT_GT(red, 2);
  EXPECT_THAT(report(), HasSubstr(fmt::format("red results of gated backends: {}\n", red)));
  EXPECT_THAT(report(), HasSubstr("Not shrunk yet."));
}

TEST_F(Fuzz, BadRequestsAreSentences) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> bad{
      {{"--count", "0"}, "--count 0: expected a number from 1 to 100000"},
      {{"--count", "3", "--minutes", "1"}, "--count with --minutes"},
      {{"--minutes", "nan"}, "--minutes nan: expected minutes"},
      {{"--seed", "-1"}, "--seed -1: expected a whole number from 0 to 2^64 - 1"},
      {{"--sed", "1"}, "did you mean '--seed'?"},
      {{"--backend", "eagr"}, "did you mean 'eager'?"},
      {{"--workers", "0"}, "a number from 1 to 64"},
  };
  for (const auto& [options, sentence] : bad) {
    const Answer answer = fuzz(options);
    EXPECT_EQ(answer.exit_code, kExitUsage) << answer.out;
    EXPECT_THAT(answer.out, HasSubstr(sentence));
    EXPECT_FALSE(fs::exists(folder_ / "out"));
  }
}

}  // namespace
}  // namespace attnbench
