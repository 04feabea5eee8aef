// What a run writes, its exit codes, and the sentences for what cannot be.
#include <algorithm>
#include <filesystem>
#include <fstream>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/exit_code.hpp"
#include "harness/run/test_attnbench.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

TEST_F(Attnbench, WritesARunAndItsReports) {
  const Answer answer = run(cases(3));
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  const RunData run = results();
  EXPECT_EQ(run.records.size(), 12u);
  EXPECT_EQ(run.comparisons.size(), 3u);
  EXPECT_EQ(run.headers.size(), 1u);
  EXPECT_EQ(run.backends.at("cpu").size(), 2u);
  EXPECT_THAT(run.gated, testing::ElementsAre("flash_varlen"));
  const Record& first = run.records.front();
  EXPECT_EQ(first.run, run.headers.front().run);
  EXPECT_EQ(first.suite, "case");
  EXPECT_EQ(first.repro, "attnbench --case \"attention d=64 lq=1\" --backend flash_varlen --pass forward --device cpu");
  for (const char* report : {"results.csv", "summary.md", "benchmark.json", "worker.log"})
    EXPECT_TRUE(fs::exists(folder_ / "out" / report)) << report;
}

TEST_F(Attnbench, ARecordSaysInWhichSuiteItsCaseStands) {
  fs::create_directories(folder_);
  std::ofstream(folder_ / "inner.suite") << "attention lq=1 d=64 # timed=no\n";
  std::ofstream(folder_ / "outer.suite") << "include inner\nattention lq=2 d=64 # timed=no\n";
  run({"--suite", path("outer.suite"), "--out", path("out")});
  const RunData ran = results();
  ASSERT_EQ(ran.records.size(), 8u);
  for (const Record& record : ran.records) {
    EXPECT_EQ(record.suite, "outer");
    EXPECT_EQ(record.case_suite, record.case_line == "attention d=64 lq=1" ? "inner" : "outer");
  }
}

TEST_F(Attnbench, AReproLineRepeatsWhatWasRepeated) {
  run({"--case", "attention lq=1 d=64 # repeats=1000 timed=no", "--out", path("out")});
  EXPECT_EQ(results().records.front().repro,
            "attnbench --case \"attention d=64 lq=1 # repeats=1000\" --backend flash_varlen --pass forward --device cpu");
}

/// Between the quotes of a shell.
TEST_F(Attnbench, AReproLineHoldsTheTermsOfTheVerdict) {
  run({"--case", "attention lq=1 d=64 # expect=must_throw message=\"no \\\"$d\\\"\" name=x timed=no", "--out", path("out")});
  const Record record = results().records.front();
  EXPECT_EQ(record.terms, R"(expect=must_throw message="no \"$d\"")");
  EXPECT_EQ(record.repro, R"(attnbench --case "attention d=64 lq=1 # expect=must_throw message=\"no \\\"\$d\\\"\"" )"
                          R"(--backend flash_varlen --pass forward --device cpu)");
}

TEST_F(Attnbench, ADumpThatWouldStayEmptyIsRefused) {
  const Answer answer = run({"--case", "llama d=64 s=8", "--dump", path("dump"), "--out", path("out")});
  EXPECT_EQ(answer.exit_code, kExitUsage);
  EXPECT_THAT(answer.out, HasSubstr("only cases of attention are dumped, and the run has none"));
  EXPECT_FALSE(fs::exists(folder_ / "dump"));
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

TEST_F(Attnbench, AWorkerWithoutABackendOfOursGatesNothingAndSaysSo) {
  const Answer answer = run(cases(1), "--nobody-is-ours --status failed");
  EXPECT_EQ(answer.exit_code, kExitInfrastructure) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("too little evidence: nothing that was judged is gated"));
  EXPECT_EQ(run(joined(cases(1, "none"), {"--gate", "none"}), "--nobody-is-ours --status failed").exit_code, kExitOk);
  EXPECT_EQ(run(joined(cases(1, "all"), {"--gate", "all"}), "--nobody-is-ours --status failed").exit_code, kExitGate);
}

TEST_F(Attnbench, UnsupportedOutsideTheCapabilitiesIsNoFailure) {
  const Answer answer = run({"--case", "attention lq=4 d=64 layout=padded", "--out", path("out")}, "--status unsupported");
  EXPECT_EQ(answer.exit_code, kExitAllSkipped) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("nothing to judge"));
  EXPECT_EQ(count(results(), Status::unsupported), 4);
}

TEST_F(Attnbench, ABackendOfAnotherDeviceIsLeftOutAndSaid) {
  const Answer answer = run(cases(1), "--gpu-backend");
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("\nnot on cpu: gpu_only\n"));
  EXPECT_EQ(results().records.size(), 4u);
  EXPECT_EQ(results().headers.front().environment["not_on_device"], nlohmann::json({"gpu_only"}));
  EXPECT_THAT(read_text(folder_ / "out" / "summary.md"), HasSubstr("\nnot on cpu: gpu_only\n"));
  EXPECT_THAT(run({"support"}, "--gpu-backend").out, HasSubstr("device cpu: gpu_only runs on cuda"));
  EXPECT_THAT(run(cases(1, "all"), "").out, testing::Not(HasSubstr("not on cpu")));
}

TEST_F(Attnbench, ABackendOfAnotherDeviceThatIsAskedForAnswersWhyNot) {
  const Answer answer = run(joined(cases(1), {"--backend", "gpu_only"}), "--gpu-backend");
  EXPECT_EQ(answer.exit_code, kExitAllSkipped) << answer.out;
  const RunData asked = results();
  EXPECT_EQ(count(asked, Status::unsupported), 2);
  EXPECT_EQ(asked.records.front().reason, "device cpu: gpu_only runs on cuda");
  EXPECT_THAT(answer.out, testing::Not(HasSubstr("not on cpu")));
  EXPECT_EQ(run(joined(cases(1, "both"), {"--backend", "gpu_only,flash_varlen"}), "--gpu-backend").exit_code, kExitOk);
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
      {{"--resume", "x", "--attention", "auto"}, "leave out --attention"},
      {{"--case", "attention lq=1 dd=64"}, "dd"},
      {{"--suite", "smok"}, "did you mean 'smoke'?"},
      {{"--resume", path("nothing")}, "cannot be read"},
      {{"--case", "attention lq=1 d=64", "--out", path("file/below")}, "cannot be written"},
      {{"--check-only"}, "nothing to run"},
      {{"selftest", "--out", path("out"), "--sute", "x"}, "did you mean '--suite'?"},
      {{"selftest", "--out", path("out"), "--workers", "0"}, "a number from 1 to 64"},
      {{"selftest", "--out", path("out"), "--device", "tpu"}, "expected cpu, cuda or cuda:N"},
  };
  for (const auto& [arguments, sentence] : bad) {
    const Answer answer = run(arguments);
    EXPECT_EQ(answer.exit_code, kExitUsage) << answer.out;
    EXPECT_THAT(answer.out, HasSubstr(sentence));
    EXPECT_EQ(std::count(answer.out.begin(), answer.out.end(), '\n'), 1) << answer.out;
    EXPECT_FALSE(fs::exists(folder_ / "out"));
  }
}

TEST_F(Attnbench, HelpIsForCommandsThatAreThere) {
  EXPECT_EQ(run({}, "none").exit_code, kExitUsage);
  for (const std::vector<std::string>& there : {std::vector<std::string>{"--help"}, {"run", "--help"}, {"merge", "--help"}})
    EXPECT_EQ(run(there, "none").exit_code, kExitOk);
  EXPECT_THAT(run({"merge", "--help"}, "none").out, HasSubstr("folder of the whole"));
  EXPECT_THAT(run({"selftest", "--help"}, "none").out, HasSubstr("cuda:N [cpu]"));
  for (const std::vector<std::string>& not_there : {std::vector<std::string>{"merg"}, {"merg", "--help"}}) {
    const Answer answer = run(not_there, "none");
    EXPECT_EQ(answer.exit_code, kExitUsage) << answer.out;
    EXPECT_THAT(answer.out, HasSubstr("unknown command merg; did you mean 'merge'?"));
  }
  EXPECT_EQ(run({"nosuch", "--help"}, "none").exit_code, kExitUsage);
}

/// The tables that come with the program, where somebody has changed them.
TEST_F(Attnbench, ATableThatIsWrongSaysWhereAndWhatWasExpected) {
  EXPECT_EQ(run(joined(cases(1), {"--gate", "none"}), "--status failed").exit_code, kExitOk);
  fs::create_directories(folder_ / "home");
  fs::copy(fs::path(ATTNBENCH_SOURCE_DIR) / "cases", folder_ / "home" / "cases", fs::copy_options::recursive);
  const auto said = [&](const std::string& table, const std::string& got, const std::string& instead,
                        const std::vector<std::string>& command, const std::string& worker) {
    const fs::path file = folder_ / "home" / "cases" / table;
    const std::string before = read_text(file);
    std::string text = before;
    text.replace(text.find(got), got.size(), instead);
    std::ofstream(file) << text;
    setenv("ATTNBENCH_HOME", (folder_ / "home").c_str(), 1);
    const Answer answer = run(command, worker);
    unsetenv("ATTNBENCH_HOME");
    EXPECT_EQ(answer.exit_code, kExitUsage) << answer.out;
    std::ofstream(file) << before;
    return answer.out;
  };
  const std::vector<std::string> support{"support", "--assume-sm", "7.5"}, report{"report", path("out"), "--format", "findings"};
  EXPECT_THAT(said("safety.json", "\"dtype\": \"bf16\"", "\"dtype\": \"bf17\"", support, ""),
              HasSubstr("rows[1].dtype: expected one of any, bf16, fp16, fp32, got \"bf17\""));
  EXPECT_THAT(said("safety.json", "[[0, 79]]", "[[0, 79, 80]]", support, ""),
              HasSubstr(".sm: expected pairs of the first and the last, got [0,79,80]"));
  EXPECT_THAT(said("advice.json", "\"pass\": \"backward\"", "\"pass\": \"back\"", report, "none"),
              HasSubstr(".pass: expected one of any, forward, backward, got \"back\""));
  fs::remove(folder_ / "home" / "cases" / "advice.json");
  setenv("ATTNBENCH_HOME", (folder_ / "home").c_str(), 1);
  EXPECT_THAT(run(report, "none").out, HasSubstr("advice.json: the table of advice cannot be read: No such file or directory"));
  unsetenv("ATTNBENCH_HOME");
}

TEST_F(Attnbench, AFolderThatHoldsARunIsNotOverwritten) {
  EXPECT_EQ(run(cases(1)).exit_code, kExitOk);
  const std::string before = read_text(folder_ / "out" / kResultsFile);
  const Answer answer = run(cases(1));
  EXPECT_EQ(answer.exit_code, kExitUsage);
  EXPECT_THAT(answer.out, HasSubstr("--resume"));
  EXPECT_EQ(read_text(folder_ / "out" / kResultsFile), before);
}

TEST_F(Attnbench, AnAssumedSmFlagsTheBackwardOfLargeHeads) {
  const Answer answer = run({"--case", "attention lq=1 d=128", "--assume-sm", "7.5", "--out", path("out")});
  EXPECT_EQ(answer.exit_code, kExitOk);
  const std::string flag = "backward on an assumed SM 7.5: a backward with a head dim above 64 on SM < 8";
  EXPECT_THAT(answer.out, HasSubstr(flag));
  EXPECT_THAT(read_text(folder_ / "out" / "summary.md"), HasSubstr(flag));
  for (const Record& record : results().records) {
    EXPECT_EQ(record.safety.assumed_sm, 75);
    EXPECT_TRUE(record.safety.sm_below_8);
    EXPECT_EQ(record.safety.backward_d_above_64_sm_below_8, record.pass == Pass::backward);
  }
}

TEST_F(Attnbench, SupportPrintsBackendsAndReasons) {
  const Answer answer = run({"support"});
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("flash_varlen"));
  EXPECT_THAT(answer.out, HasSubstr("Why not"));
  EXPECT_THAT(run({"support", "--assume-sm", "7.5"}).out, HasSubstr("refused, SM < 8 and a head dim above 64: "));
}

TEST_F(Attnbench, ListsItsSuites) {
  EXPECT_THAT(run({"list"}, "none").out, HasSubstr("smoke"));
  EXPECT_THAT(run({"list", "--suite", "smoke"}, "none").out, HasSubstr("attention "));
}

}  // namespace
}  // namespace attnbench
