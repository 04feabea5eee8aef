// `attnbench selftest` as a user meets it: the fake worker's planted backends are caught, equivalent, or survive.
#include <csignal>
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "harness/run/exit_code.hpp"
#include "harness/run/test_attnbench.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;
using testing::UnorderedElementsAre;

class SelftestRun : public Attnbench {
 protected:
  void SetUp() override {
    Attnbench::SetUp();
    std::ofstream(folder_ / "two.suite") << "attention d=64 lq=1,2 mask=causal # timed=no\n";
  }
  Answer selftest(const std::vector<std::string>& more = {}, const std::string& worker = "") const {
    return run(joined({"selftest", "--suite", path("two.suite"), "--out", path("out")}, more), worker);
  }
  /// Both cases of flash_varlen:survives.
  std::string known_file(int count) const {
    nlohmann::json list = nlohmann::json::array();
    for (int i = 1; i <= count; ++i)
      list.push_back({{"defect", "flash_varlen:survives"}, {"case", "attention d=64 mask=causal lq=" + std::to_string(i)}});
    std::ofstream(folder_ / "known.json") << nlohmann::json{{"survivors", list}};
    return path("known.json");
  }
  nlohmann::json summary() const { return nlohmann::json::parse(read_text(folder_ / "out" / "selftest.json")); }
  std::set<std::string> backends_that_ran() const {
    std::set<std::string> names;
    for (const Record& record : results().records) names.insert(record.backend);
    return names;
  }
};

TEST_F(SelftestRun, SaysWhatWasCaughtAndWhatSurvived) {
  const Answer answer = selftest();
  EXPECT_EQ(answer.exit_code, kExitGate) << answer.out;
  EXPECT_EQ(results().records.size(), 24u);  // 2 cases, 2 passes, 6 backends
  EXPECT_THAT(answer.out, HasSubstr("FAILED: 2 survivors are not known: 8 pairs of 3 planted defects: 4 caught, 2 equivalent, "
                                    "2 survived, 0 of them known; 0 false alarms in 8 judged tensors of sound backends"));
  EXPECT_THAT(answer.out, HasSubstr("rms dv 4, rms o 4"));
  EXPECT_THAT(answer.out, HasSubstr("flash_varlen:survives: rms of dv 0.97 of its limit"));
  EXPECT_THAT(answer.out,
              HasSubstr("repro  attnbench --case \"attention d=64 lq=1 mask=causal\" --backend flash_varlen:survives"));
  const nlohmann::json json = summary();
  EXPECT_EQ(json["defects"], 3);
  EXPECT_EQ(json["pairs"], 8);
  EXPECT_EQ(json["caught"], 4);
  EXPECT_EQ(json["equivalent"], 2);
  EXPECT_EQ(json["survivors"].size(), 2u);
  EXPECT_EQ(json["survivors"][0]["largest"]["ratio"], 0.97);
  EXPECT_EQ(json["tensors"], 8);
  EXPECT_EQ(json["false_alarms"], 0);
  EXPECT_EQ(json["gates"], nlohmann::json::parse(R"({"rms":{"caught":4,"alone":4}})"));
  EXPECT_THAT(read_text(folder_ / "out" / "selftest.md"), HasSubstr("| caught | 4 | 4 | 0 | 0 | 0 | rms dv 4, rms o 4 |"));
}

TEST_F(SelftestRun, KnownSurvivorsAreNoFailureAndStaleOnesAre) {
  EXPECT_EQ(selftest({"--known", known_file(2)}).exit_code, kExitOk);
  EXPECT_EQ(summary()["survivors"][0]["known"], true);
  fs::remove_all(folder_ / "out");
  EXPECT_EQ(selftest({"--known", known_file(1)}).exit_code, kExitGate);
  fs::remove_all(folder_ / "out");
  const Answer stale = selftest({"--known", known_file(2)}, "--behaviour crash --on flash_varlen:survives/backward");
  EXPECT_EQ(stale.exit_code, kExitGate);
  EXPECT_THAT(stale.out, HasSubstr("FAILED: 2 known survivors survive no more"));
  EXPECT_EQ(summary()["gates"]["crash"], nlohmann::json::parse(R"({"caught":2,"alone":2})"));
}

TEST_F(SelftestRun, ASoundBackendThatIsAccusedFails) {
  const Answer answer = selftest({"--known", known_file(2)}, "--behaviour crash --on eager/forward --once " + path("once"));
  EXPECT_EQ(answer.exit_code, kExitGate);
  EXPECT_THAT(answer.out, HasSubstr("FAILED: 1 false alarm:"));
  EXPECT_THAT(answer.out, HasSubstr("eager: crash"));
}

TEST_F(SelftestRun, BackendsAreChosenByTheirOwnNameOrTheRealOne) {
  selftest({"--backend", "eager"});
  EXPECT_THAT(backends_that_ran(), UnorderedElementsAre("eager", "eager:caught"));
  fs::remove_all(folder_ / "out");
  selftest({"--backend", "flash_varlen:caught,eager", "--filter", "lq=2"});
  EXPECT_THAT(backends_that_ran(), UnorderedElementsAre("flash_varlen", "flash_varlen:caught", "eager", "eager:caught"));
  EXPECT_EQ(results().records.size(), 8u);
  fs::remove_all(folder_ / "out");
  const Answer unknown = selftest({"--backend", "flash_varlen:cauht"});
  EXPECT_EQ(unknown.exit_code, kExitUsage);
  EXPECT_THAT(unknown.out, HasSubstr("did you mean 'flash_varlen:caught'?"));
  EXPECT_EQ(selftest({"--backend", "gpu_only"}, "--gpu-backend").exit_code, kExitNoMatch);
  EXPECT_EQ(selftest({"--filter", "no such thing"}).exit_code, kExitNoMatch);
  EXPECT_EQ(selftest({"--known", path("nothing")}).exit_code, kExitUsage);
}

TEST_F(SelftestRun, WhereNoDefectCanShowThereIsNothingToJudge) {
  const Answer answer = selftest({"--backend", "flash_varlen:equivalent"});
  EXPECT_EQ(answer.exit_code, kExitAllSkipped) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("nothing to judge"));
}

TEST_F(SelftestRun, TakesTheSuiteAndTheListThatComeWithTheProgram) {
  const Answer answer = run({"selftest", "--backend", "eager", "--out", path("out")});
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_EQ(results().records.front().suite, "defects");
}

TEST_F(SelftestRun, APlantedBackendRunsByItsNameAlone) {
  const Answer answer = run(joined(cases(1), {"--backend", "flash_varlen:caught"}));
  EXPECT_THAT(backends_that_ran(), UnorderedElementsAre("flash_varlen:caught"));
  EXPECT_EQ(count(results(), Status::failed), 2) << answer.out;
  EXPECT_EQ(results().backends.at("cpu").size(), 3u) << "the real ones and the one that ran";
}

TEST_F(SelftestRun, ANormalRunSeesNoPlantedBackend) {
  run(cases(1));
  EXPECT_THAT(backends_that_ran(), UnorderedElementsAre("flash_varlen", "eager"));
  EXPECT_THAT(run({"support"}).out, Not(HasSubstr("flash_varlen:caught")));
}

TEST_F(SelftestRun, ThatIsInterruptedSaysThatItHasToBeRunAgain) {
  const pid_t process = start({"selftest", "--suite", path("two.suite"), "--out", path("out")}, "--delay-ms 100");
  wait_for(2);
  kill(process, SIGINT);
  const Answer answer = finish(process);
  EXPECT_EQ(answer.exit_code, kExitInterrupted) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("has to be run again"));
  EXPECT_FALSE(fs::exists(folder_ / "out" / "selftest.json"));
}

TEST_F(SelftestRun, IsNotResumed) {
  selftest();
  const Answer answer = run({"--resume", path("out")});
  EXPECT_EQ(answer.exit_code, kExitUsage);
  EXPECT_THAT(answer.out, HasSubstr("cannot be resumed"));
  EXPECT_THAT(run({"selftest", "--help"}, "none").out, HasSubstr("has to be run again"));
}

}  // namespace
}  // namespace attnbench
