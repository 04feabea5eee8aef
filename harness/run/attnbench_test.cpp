// The executable as a user meets it, with a worker that misbehaves on demand (fake_worker.cpp): exit codes, crashes, resume.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <thread>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness/run/exit_code.hpp"
#include "harness/run/run_data.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::string read_text(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct Answer {
  int exit_code = -1;  ///< 128 + signal if a signal ended it, as a shell says
  std::string out;     ///< stdout and stderr
};

class Attnbench : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("attnbench_test-{}", getpid());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  /// Starts attnbench; `worker` are the fake worker's options.
  pid_t start(std::vector<std::string> arguments, const std::string& worker) const {
    arguments.insert(arguments.begin(), ATTNBENCH_EXECUTABLE);
    if (worker != "none") {
      arguments.push_back("--worker");
      arguments.push_back(std::string(FAKE_WORKER) + " " + worker);
    }
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const std::string output = (folder_ / "output").string();
    const pid_t process = fork();
    if (process == 0) {
      if (!freopen(output.c_str(), "w", stdout)) _exit(126);
      dup2(STDOUT_FILENO, STDERR_FILENO);
      execv(argv[0], argv.data());
      _exit(127);
    }
    return process;
  }

  Answer finish(pid_t process) const {
    int status = 0;
    waitpid(process, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_text(folder_ / "output")};
  }

  Answer run(const std::vector<std::string>& arguments, const std::string& worker = "") const {
    return finish(start(arguments, worker));
  }

  /// A run of `cases` cases (4 runs each: two backends, two passes) in out/.
  std::vector<std::string> cases(int count, const std::string& out = "out") const {
    std::string lines = "attention lq=1";
    for (int i = 2; i <= count; ++i) lines += fmt::format(",{}", i);
    return {"--case", lines + " d=64", "--out", path(out)};
  }
  static std::vector<std::string> joined(std::vector<std::string> a, const std::vector<std::string>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  RunData results(const std::string& name = "out") const { return read_run(folder_ / name); }

  /// "backend/pass/status" of each record of a case, sorted.
  static std::multiset<std::string> outcomes(const RunData& run) {
    std::multiset<std::string> all;
    for (const Record& r : run.records)
      all.insert(fmt::format("{}/{}/{}/{}", r.case_line, r.backend, name_of(r.pass), name_of(r.status)));
    return all;
  }
  static int count(const RunData& run, Status status) {
    return static_cast<int>(
        std::count_if(run.records.begin(), run.records.end(), [&](const auto& r) { return r.status == status; }));
  }
  /// The one record with that status; a blank one, and a failed test, if there is none or more.
  static Record only(const RunData& run, Status status) {
    EXPECT_EQ(count(run, status), 1);
    const auto found = std::find_if(run.records.begin(), run.records.end(), [&](const auto& r) { return r.status == status; });
    return found == run.records.end() ? Record{} : *found;
  }

  /// Waits until out/ holds `records` records.
  void wait_for(size_t records) const {
    for (int i = 0; i < 500; ++i) {
      const std::string text = read_text(folder_ / "out" / kResultsFile);
      if (static_cast<size_t>(std::count(text.begin(), text.end(), '\n')) > records) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    FAIL() << "the run does not get on";
  }

  fs::path folder_;
};

TEST_F(Attnbench, WritesARunAndItsReports) {
  const Answer answer = run(cases(3));
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  const RunData run = results();
  EXPECT_EQ(run.records.size(), 12u);
  EXPECT_EQ(run.comparisons.size(), 3u);
  EXPECT_EQ(run.headers.size(), 1u);
  EXPECT_EQ(run.backends.size(), 2u);
  EXPECT_THAT(run.gated, testing::ElementsAre("flash_varlen"));
  const Record& first = run.records.front();
  EXPECT_EQ(first.run, run.headers.front().run);
  EXPECT_EQ(first.suite, "case");
  EXPECT_EQ(first.repro, "attnbench --case \"attention d=64 lq=1\" --backend flash_varlen --pass forward");
  for (const char* report : {"results.csv", "summary.md", "benchmark.json", "worker.log"})
    EXPECT_TRUE(fs::exists(folder_ / "out" / report)) << report;
}

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
  const std::vector<std::pair<std::string, std::string>> ends{{"exit", "exited with code 3"},
                                                              {"rubbish", "did not keep to the protocol"},
                                                              {"cut", "exited with code 0"},
                                                              {"unasked", "nobody asked for nobody forward"},
                                                              {"hang", "0.5 s of silence"},
                                                              {"trickle", "0.5 s of silence"},
                                                              {"other-case", "got \"attention d=64 lq=99\""},
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

TEST_F(Attnbench, TheExitCodeFollowsTheGatedBackends) {
  const auto with_status = [&](const std::string& status, std::vector<std::string> more = {}) {
    fs::remove_all(folder_ / "out");
    return run(joined(cases(1), more), "--status " + status).exit_code;
  };
  EXPECT_EQ(with_status("passed"), kExitOk);
  EXPECT_EQ(with_status("failed"), kExitGate);
  EXPECT_EQ(with_status("mistrusted"), kExitGate);
  EXPECT_EQ(with_status("skipped"), kExitAllSkipped);
  EXPECT_EQ(with_status("unsupported"), kExitGate);  // the case lies inside the declared capabilities
  EXPECT_EQ(with_status("failed", {"--gate", "none"}), kExitOk);
  EXPECT_EQ(with_status("failed", {"--gate", "eager"}), kExitGate);
  EXPECT_EQ(with_status("passed", {"--backend", "eager"}), kExitInfrastructure);  // nothing that is gated was judged
  EXPECT_EQ(with_status("passed", {"--backend", "eager", "--gate", "all"}), kExitOk);
}

TEST_F(Attnbench, UnsupportedOutsideTheCapabilitiesIsNoFailure) {
  const Answer answer = run({"--case", "attention lq=4 d=64 layout=padded", "--out", path("out")}, "--status unsupported");
  EXPECT_EQ(answer.exit_code, kExitInfrastructure) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("too little evidence"));
}

TEST_F(Attnbench, AFilterThatMatchesNothingSaysSo) {
  const Answer answer = run(joined(cases(1), {"--filter", "no such thing"}));
  EXPECT_EQ(answer.exit_code, kExitNoMatch) << answer.out;
  EXPECT_FALSE(fs::exists(folder_ / "out"));
}

TEST_F(Attnbench, FiltersIncludeAndExclude) {
  EXPECT_EQ(run(joined(cases(2, "in"), {"--filter", "flash_varlen backward .*lq=2"})).exit_code, kExitOk);
  EXPECT_EQ(results("in").records.size(), 1u);
  EXPECT_EQ(run(joined(cases(2, "ex"), {"--filter", "-eager|lq=2"})).exit_code, kExitOk);
  EXPECT_EQ(results("ex").records.size(), 2u);
}

TEST_F(Attnbench, BadRequestsAreSentencesWithTheNearestRightThing) {
  std::ofstream(folder_ / "file") << "in the way";
  const std::vector<std::pair<std::vector<std::string>, std::string>> bad{
      {joined(cases(1), {"--sute", "x"}), "did you mean '--suite'?"},
      {joined(cases(1), {"--backend", "eagr"}), "did you mean 'eager'?"},
      {joined(cases(1), {"--gate", "eagr"}), "did you mean 'eager'?"},
      {joined(cases(1), {"--pass", "backwards"}), "did you mean 'backward'?"},
      {joined(cases(1), {"--filter", "("}), "not a regular expression"},
      {joined(cases(1), {"--shard", "9/8"}), "expected I/N"},
      {joined(cases(1), {"--timeout", "-1"}), "--timeout"},
      {joined(cases(1), {"--timeout", "nan"}), "--timeout"},
      {joined(cases(1), {"--assume-sm", "75"}), "as in 7.5"},
      {joined(cases(1), {"--device", "tpu"}), "expected cpu, cuda or cuda:N"},
      {joined(cases(1), {"--resume", "x"}), "--out with --resume"},
      {{"--case", "attention lq=1 dd=64"}, "dd"},
      {{"--suite", "smok"}, "did you mean 'smoke'?"},
      {{"--resume", path("nothing")}, "cannot be read"},
      {{"--case", "attention lq=1 d=64", "--out", path("file/below")}, "cannot be written"},
      {{"--check-only"}, "nothing to run"},
  };
  for (const auto& [arguments, sentence] : bad) {
    const Answer answer = run(arguments);
    EXPECT_EQ(answer.exit_code, kExitUsage) << answer.out;
    EXPECT_THAT(answer.out, HasSubstr(sentence));
    EXPECT_EQ(std::count(answer.out.begin(), answer.out.end(), '\n'), 1) << answer.out;
    EXPECT_FALSE(fs::exists(folder_ / "out"));
  }
  EXPECT_EQ(run({}, "none").exit_code, kExitUsage);
  EXPECT_EQ(run({"--help"}, "none").exit_code, kExitOk);
}

TEST_F(Attnbench, AFolderThatHoldsARunIsNotOverwritten) {
  EXPECT_EQ(run(cases(1)).exit_code, kExitOk);
  const std::string before = read_text(folder_ / "out" / kResultsFile);
  const Answer answer = run(cases(1));
  EXPECT_EQ(answer.exit_code, kExitUsage);
  EXPECT_THAT(answer.out, HasSubstr("--resume"));
  EXPECT_EQ(read_text(folder_ / "out" / kResultsFile), before);
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
  EXPECT_EQ(run(joined({"--resume", path("out")}, {"--case", "attention lq=1,2,3,4,5 d=64"})).exit_code, kExitOk);
  EXPECT_EQ(results().records.size(), 20u);
  const Answer twice = run({"--resume", path("out"), "--pass", "forward"});
  EXPECT_EQ(twice.exit_code, kExitUsage);
  EXPECT_THAT(twice.out, HasSubstr("leave out --pass"));
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
    EXPECT_TRUE(results().warnings.empty());
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

TEST_F(Attnbench, ShardsMergeIntoTheWhole) {
  EXPECT_EQ(run(cases(7)).exit_code, kExitOk);
  std::vector<std::string> merge{"merge"};
  for (int shard : {3, 1, 2}) {
    const std::string name = fmt::format("part{}", shard);
    EXPECT_EQ(run(joined(cases(7, name), {"--shard", fmt::format("{}/3", shard)})).exit_code, kExitOk);
    merge.push_back(path(name));
  }
  merge.push_back(path("part1"));  // a duplicate
  const Answer answer = run(joined(merge, {"--out", path("merged")}), "none");
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_EQ(outcomes(results("merged")), outcomes(results()));
  std::reverse(merge.begin() + 1, merge.end());
  EXPECT_EQ(run(joined(merge, {"--out", path("again")}), "none").exit_code, kExitOk);
  EXPECT_EQ(read_text(folder_ / "again" / kResultsFile), read_text(folder_ / "merged" / kResultsFile));
}

TEST_F(Attnbench, AMergeReportsConflictsAndKeepsTheWorse) {
  EXPECT_EQ(run(cases(1, "good")).exit_code, kExitOk);
  EXPECT_EQ(run(cases(1, "bad"), "--status failed").exit_code, kExitGate);
  const Answer answer = run({"merge", path("bad"), path("good"), "--out", path("merged")}, "none");
  EXPECT_EQ(answer.exit_code, kExitGate);
  EXPECT_THAT(answer.out, HasSubstr("conflict: flash_varlen forward on cpu: failed and passed"));
  EXPECT_EQ(count(results("merged"), Status::failed), 4);
}

TEST_F(Attnbench, AnAssumedSmFlagsTheBackwardOfLargeHeads) {
  EXPECT_EQ(run({"--case", "attention lq=1 d=128", "--assume-sm", "7.5", "--out", path("out")}).exit_code, kExitOk);
  for (const Record& record : results().records) {
    EXPECT_TRUE(record.safety.seed_rule);
    EXPECT_EQ(record.safety.mission_rule, record.pass == Pass::backward);
  }
}

TEST_F(Attnbench, SupportPrintsBackendsAndReasons) {
  const Answer answer = run({"support"});
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("flash_varlen"));
  EXPECT_THAT(answer.out, HasSubstr("Why not"));
  EXPECT_THAT(run({"support", "--assume-sm", "7.5"}).out, HasSubstr("head_dim > 64 on SM < 8"));
}

TEST_F(Attnbench, ListsItsSuites) {
  EXPECT_THAT(run({"list"}, "none").out, HasSubstr("smoke"));
  EXPECT_THAT(run({"list", "--suite", "smoke"}, "none").out, HasSubstr("attention "));
}

}  // namespace
}  // namespace attnbench
