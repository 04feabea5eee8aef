// Runs that are cut, killed or interrupted at any moment, and go on.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <random>
#include <set>
#include <thread>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "harness/run/exit_code.hpp"
#include "harness/run/test_attnbench.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr unsigned kSeed = 20261121;
constexpr int kKills = 20;

std::chrono::milliseconds random_moment(std::mt19937& random, int longest_ms) {
  return std::chrono::milliseconds(std::uniform_int_distribution<int>(0, longest_ms)(random));
}

/// Gone, or a corpse that nobody has collected.
bool is_dead(pid_t process) {
  std::ifstream in(fmt::format("/proc/{}/stat", process));
  const std::string stat((std::istreambuf_iterator<char>(in)), {});
  const size_t name_end = stat.rfind(')');
  return name_end == std::string::npos || stat.substr(name_end + 2, 1) == "Z";
}

TEST_F(Attnbench, ResumeFinishesACutRunWithoutDuplicates) {
  EXPECT_EQ(run(cases(4)).exit_code, kExitOk);
  const auto whole = outcomes(results());
  const fs::path file = folder_ / "out" / kResultsFile;
  for (double kept : {0.3, 0.55, 0.8}) {
    fs::resize_file(file, static_cast<std::uintmax_t>(static_cast<double>(fs::file_size(file)) * kept));
    const Answer answer = run({"--resume", path("out")});
    EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
    EXPECT_EQ(outcomes(results()), whole);
  }
  EXPECT_EQ(results().headers.size(), 4u);
  for (const auto& [option, value] :
       {std::pair("--pass", "forward"), std::pair("--case", "attention lq=9 d=64"), std::pair("--suite", "edge")}) {
    const Answer other = run({"--resume", path("out"), option, value});
    EXPECT_EQ(other.exit_code, kExitUsage);
    EXPECT_THAT(other.out, HasSubstr(std::string("leave out ") + option));
  }
}

TEST_F(Attnbench, AResumeMayDumpWhatItComputes) {
  EXPECT_EQ(run(cases(2)).exit_code, kExitOk);
  const fs::path file = folder_ / "out" / kResultsFile;
  fs::resize_file(file, fs::file_size(file) / 2);
  EXPECT_EQ(run({"--resume", path("out"), "--dump", path("dumped")}).exit_code, kExitOk);
  EXPECT_TRUE(fs::is_directory(folder_ / "dumped"));
}

TEST_F(Attnbench, AFileOfSomethingElseIsLeftAlone) {
  fs::create_directories(folder_ / "out");
  std::ofstream(folder_ / "out" / kResultsFile) << "notes without an end of line";
  const Answer answer = run(cases(1));
  EXPECT_EQ(answer.exit_code, kExitUsage);
  EXPECT_THAT(answer.out, HasSubstr("is no run's"));
  EXPECT_EQ(read_text(folder_ / "out" / kResultsFile), "notes without an end of line");
}

TEST_F(Attnbench, ABrokenLineInTheMiddleIsNamed) {
  EXPECT_EQ(run(cases(1)).exit_code, kExitOk);
  const fs::path file = folder_ / "out" / kResultsFile;
  const std::string text = read_text(file);
  const size_t second = text.find('\n') + 1;
  std::ofstream(file) << text.substr(0, second) << "{\"schema\":1,\"rec\n" << text.substr(second);
  for (const std::vector<std::string>& command : {std::vector<std::string>{"--resume", path("out")}, {"report", path("out")}}) {
    const Answer answer = run(command, command[0] == "report" ? "none" : "");
    EXPECT_EQ(answer.exit_code, kExitUsage);
    EXPECT_THAT(answer.out, HasSubstr("results.jsonl:2: "));
  }
}

TEST_F(Attnbench, AReportOfARunThatDidNotEndSaysHowMuchIsMissing) {
  EXPECT_EQ(run(cases(3)).exit_code, kExitOk);
  EXPECT_THAT(run({"report", path("out")}, "none").out, testing::Not(HasSubstr("has not ended")));
  const fs::path file = folder_ / "out" / kResultsFile;
  std::ifstream in(file);
  std::string kept, line;
  for (int i = 0; i < 6 && std::getline(in, line); ++i) kept += line + "\n";
  std::ofstream(file) << kept;
  const std::string out = run({"report", path("out")}, "none").out;
  EXPECT_THAT(out, HasSubstr("of 12 results are here: the run has not ended"));
  EXPECT_THAT(out, HasSubstr("attnbench --resume " + path("out")));
  EXPECT_EQ(run({"--resume", path("out")}).exit_code, kExitOk);
  EXPECT_THAT(run({"report", path("out")}, "none").out, testing::Not(HasSubstr("has not ended")));
}

TEST_F(Attnbench, ReportDropsACutLastLineWithAWarning) {
  EXPECT_EQ(run(cases(1)).exit_code, kExitOk);
  const fs::path file = folder_ / "out" / kResultsFile;
  fs::resize_file(file, fs::file_size(file) - 3);
  const Answer answer = run({"report", path("out")}, "none");
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("was cut while it was written"));
}

TEST_F(Attnbench, ACoordinatorThatIsKilledCanBeResumed) {
  const pid_t process = start(cases(5), "--delay-ms 40");
  wait_for(3);
  kill(process, SIGKILL);
  EXPECT_EQ(finish(process).exit_code, 128 + SIGKILL);
  EXPECT_LT(results().records.size(), 20u);
  const Answer answer = run({"--resume", path("out")});
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_EQ(results().records.size(), 20u);
  const auto all = outcomes(results());
  EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), 20u);
}

TEST_F(Attnbench, ASignalEndsTheRunInAStateThatCanBeResumed) {
  for (int signal : {SIGINT, SIGTERM}) {
    fs::remove_all(folder_ / "out");
    const pid_t process = start(cases(5), "--delay-ms 40");
    wait_for(3);
    kill(process, signal);
    const Answer answer = finish(process);
    EXPECT_EQ(answer.exit_code, signal == SIGINT ? kExitInterrupted : kExitTerminated) << answer.out;
    EXPECT_THAT(answer.out, HasSubstr("attnbench --resume"));
    EXPECT_THAT(results().warnings, testing::ElementsAre(HasSubstr("has not ended")));
    EXPECT_EQ(run({"--resume", path("out")}).exit_code, kExitOk);
    EXPECT_EQ(results().records.size(), 20u);
  }
}

TEST_F(Attnbench, TwoCoordinatorsDoNotShareAFolder) {
  const pid_t process = start(cases(5), "--delay-ms 40");
  wait_for(1);
  fs::rename(folder_ / "output", folder_ / "output of the first");
  const Answer second = run({"--resume", path("out")});
  EXPECT_EQ(second.exit_code, kExitUsage);
  EXPECT_THAT(second.out, HasSubstr("another attnbench is writing"));
  EXPECT_EQ(finish(process).exit_code, kExitOk);
}

TEST_F(Attnbench, ARunThatWasKilledBeforeItBeganIsStartedAgain) {
  for (const char* left : {"", "{\"schema\":1,\"rec"}) {
    fs::create_directories(folder_ / "out");
    std::ofstream(folder_ / "out" / kResultsFile) << left;
    const Answer resume = run({"--resume", path("out")});
    EXPECT_EQ(resume.exit_code, kExitUsage);
    EXPECT_THAT(resume.out, HasSubstr("start it again with --out"));
    EXPECT_EQ(run(cases(1)).exit_code, kExitOk);
    EXPECT_EQ(results().records.size(), 4u);
    fs::remove_all(folder_ / "out");
  }
}

TEST_F(Attnbench, TwentyKillsOfTheCoordinatorLoseNothingAndDoubleNothing) {
  SCOPED_TRACE(fmt::format("seed {}", kSeed));
  std::mt19937 random(kSeed);
  EXPECT_EQ(run(cases(100, "undisturbed")).exit_code, kExitOk);
  int killed = 0;
  for (int i = 0; i < kKills; ++i) {
    const bool began = lines_written() > 0;
    const pid_t process = start(began ? std::vector<std::string>{"--resume", path("out")} : cases(100), "--delay-ms 5");
    std::this_thread::sleep_for(random_moment(random, 150));
    kill(process, SIGKILL);
    killed += finish(process).exit_code == 128 + SIGKILL;
  }
  EXPECT_GE(killed, kKills * 3 / 4) << "the run was over before it was killed often enough";
  const bool began = lines_written() > 0;
  const Answer answer = run(began ? std::vector<std::string>{"--resume", path("out")} : cases(100));
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_EQ(outcomes(results()), outcomes(results("undisturbed")));
}

TEST_F(Attnbench, AKilledCoordinatorLeavesNoWorkerBehind) {
  const pid_t process = start(cases(1), "--behaviour hang");
  wait_for(0);
  const std::optional<pid_t> worker = worker_of(process);
  ASSERT_TRUE(worker);
  EXPECT_FALSE(is_dead(*worker));
  kill(process, SIGKILL);
  finish(process);
  for (int i = 0; i < 500 && !is_dead(*worker); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_TRUE(is_dead(*worker));
}

TEST_F(Attnbench, TwentyKillsOfTheWorkerCostNoMoreThanTheRunsThatTheyHit) {
  SCOPED_TRACE(fmt::format("seed {}", kSeed));
  std::mt19937 random(kSeed);
  constexpr int kCases = 300;  // 1200 results of 5 ms and more each: the run outlives 20 kills
  EXPECT_EQ(run(cases(kCases, "undisturbed")).exit_code, kExitOk);
  const pid_t process = start(joined(cases(kCases), {"--gate", "none"}), "--delay-ms 5");
  int killed = 0;
  for (size_t written = 0; killed < kKills; ++killed) {
    ASSERT_NO_FATAL_FAILURE(wait_for(written)) << "after " << killed << " kills";
    std::this_thread::sleep_for(random_moment(random, 30));
    std::optional<pid_t> worker = worker_of(process);
    while (!worker && !is_dead(process)) worker = worker_of(process);  // between two workers
    if (!worker) break;
    written = lines_written();
    kill(*worker, SIGKILL);
  }
  EXPECT_EQ(killed, kKills) << "the run was over too early";
  const Answer answer = finish(process);
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_GT(count(results(), Status::error), 0);
  expect_only_kills_differ(results(), results("undisturbed"), kKills);
}

}  // namespace
}  // namespace attnbench
