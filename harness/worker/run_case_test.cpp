// One request, from the first step to the last record.
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/attention/emulator.hpp"
#include "harness/worker/attempt.hpp"
#include "harness/worker/memory.hpp"
#include "harness/worker/test_run_case.hpp"

namespace attnbench {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST_F(RunCase, ARightBackendPassesIsTimedAndCompared) {
  add("one");
  add("two");
  for (Pass pass : {Pass::forward, Pass::backward}) {
    const Answers answers = run(pass, kCase, false);
    ASSERT_EQ(answers.records.size(), 2u);
    const Record& r = answers.records[0];
    EXPECT_EQ(r.status, Status::passed) << r.reason;
    EXPECT_EQ(r.backend, "one");
    EXPECT_EQ(r.device, "cpu");
    EXPECT_EQ(r.oracle, "eigen");
    EXPECT_EQ(parse_case(r.case_line), parse_case(kCase));
    EXPECT_EQ(r.errors.count(pass == Pass::forward ? "lse" : "dk"), 1u);
    ASSERT_TRUE(r.time);
    EXPECT_EQ(r.time->regime, "cpu_hot");
    EXPECT_GE(r.time->windows.at("op").rounds.size(), 10u);
    EXPECT_GT(r.time->tflops, 0);
    ASSERT_TRUE(r.memory);
    EXPECT_GT(r.memory->peak_bytes, 2 * 24 * 4 * 16 * 2);
    ASSERT_EQ(answers.comparisons.size(), 1u);
    EXPECT_EQ(answers.comparisons[0].pass, pass);
    EXPECT_EQ(answers.comparisons[0].differences.size(), pass == Pass::forward ? 2u : 3u);
    EXPECT_EQ(answers.comparisons[0].differences[0].max_abs, 0) << "both compute by the same emulator";
  }
}

TEST_F(RunCase, TheFastestCallOfABackwardHasItsForwardInIt) {
  const double kForward_s = 0.02;
  add("slow_forward", [kForward_s](int, const Inputs&, Outputs& outputs) {
    if (outputs.o.defined()) std::this_thread::sleep_for(std::chrono::duration<double>(kForward_s));
  });
  for (Pass pass : {Pass::forward, Pass::backward}) EXPECT_GE(run(pass).records[0].spent.fastest_call_s, kForward_s);
}

TEST_F(RunCase, EveryStepIsAnnouncedBeforeItAndAllAreJudgedBeforeAnyIsTimed) {
  add("one");
  add("two");
  const Answers answers = run(Pass::forward, kCase, false);
  const std::vector<std::string> expected{"one prepare", "one run",   "one judge",     "one run again", "two prepare",
                                          "two run",     "two judge", "two run again", "one time",      "two time"};
  ASSERT_GE(answers.stages.size(), expected.size());
  EXPECT_EQ((std::vector(answers.stages.begin(), answers.stages.begin() + expected.size())), expected);
}

/// Notes whether the case that it prepares is to be timed, as backends/attention/autograd.cpp asks it.
class AsksWhetherTimed final : public Backend {
 public:
  explicit AsksWhetherTimed(std::vector<bool>& timed) : timed_(timed) {}
  const Declaration& declaration() const override { return inner_.declaration(); }
  attnbench::Run prepare(const Case& c, const Inputs& inputs, Pass pass) const override {
    timed_.push_back(c.metadata.timed);
    return inner_.prepare(c, inputs, pass);
  }

 private:
  std::vector<bool>& timed_;
  FakeBackend inner_{fake_declaration("asks")};
};

TEST_F(RunCase, ACaseThatIsOnlyCheckedIsNotToBeTimed) {
  std::vector<bool> timed;
  bench.backends.push_back(std::make_unique<AsksWhetherTimed>(timed));
  run(Pass::forward, kCase, true);
  ASSERT_FALSE(timed.empty());
  EXPECT_THAT(timed, testing::Each(false));
  timed.clear();
  run(Pass::forward, kCase, false);
  ASSERT_FALSE(timed.empty());
  EXPECT_THAT(timed, testing::Each(true));
}

TEST_F(RunCase, NoTimeWhereOnlyChecksAreWanted) {
  add("one");
  EXPECT_FALSE(run(Pass::forward, kCase, true).records.at(0).time);
  EXPECT_FALSE(run(Pass::forward, kCase + std::string(" # timed=no"), false).records.at(0).time);
}

TEST_F(RunCase, AnExceptionIsAnErrorWithItsSentenceAndTheOthersGoOn) {
  add("throws", [](int, const Inputs&, Outputs&) { throw std::runtime_error("no kernel image"); });
  add("honest");
  const Answers answers = run(Pass::backward);
  EXPECT_EQ(answers.records.at(0).status, Status::error);
  EXPECT_EQ(answers.records.at(0).reason, "no kernel image");
  EXPECT_EQ(answers.records.at(1).status, Status::passed);
}

TEST_F(RunCase, AnExceptionWhileTimedRemovesTheTime) {
  add("tired", [](int call, const Inputs&, Outputs&) {
    if (call > 4) throw std::runtime_error("worn out");
  });
  const Record r = run(Pass::forward, kCase, false).records.at(0);
  EXPECT_EQ(r.status, Status::error);
  EXPECT_THAT(r.reason, HasSubstr("worn out"));
  EXPECT_FALSE(r.time);
}

TEST_F(RunCase, OtherBitsFromCallToCallFailWhoDeclaresToBeDeterministic) {
  const auto first_call_differs = [](int call, const Inputs&, Outputs& outputs) {
    if (call == 1) bytes_of_tensor(outputs.o)[0] ^= 1;  // the last bit of one element: right both times
  };
  add("honest");
  add("wavers", first_call_differs);
  Declaration says_so = fake_declaration("wavers, and says so");
  says_so.capabilities.deterministic = false;
  bench.backends.push_back(std::make_unique<FakeBackend>(says_so, first_call_differs));
  const Answers answers = run(Pass::forward, kCase, false);
  EXPECT_EQ(answers.records.at(0).status, Status::passed) << answers.records.at(0).reason;
  EXPECT_EQ(answers.records.at(1).status, Status::failed);
  EXPECT_THAT(answers.records.at(1).reason, HasSubstr("declares that it is deterministic"));
  EXPECT_FALSE(answers.records.at(1).time);
  EXPECT_EQ(answers.records.at(2).status, Status::passed) << answers.records.at(2).reason;
}

TEST_F(RunCase, MemoryThatRunsOutWhereEnoughIsThereIsAnError) {
  add("pretends", [](int, const Inputs&, Outputs&) {
    throw c10::OutOfMemoryError(c10::SourceLocation{}, "tried to allocate 34 GiB");
  }).predicted_bytes = 1000;
  EXPECT_EQ(run(Pass::forward, kCase, false).records.at(0).status, Status::error);
}

TEST_F(RunCase, MemoryThatRunsOutIsNoErrorOfTheBackend) {
  const auto runs_out = [](int from) {
    return [from](int call, const Inputs&, Outputs&) {
      if (call >= from) throw c10::OutOfMemoryError(c10::SourceLocation{}, "tried to allocate 34 GiB");
    };
  };
  const int64_t most_of_it = available_bytes(bench.device) / 10 * 9;
  add("greedy", runs_out(1)).predicted_bytes = most_of_it;
  add("greedy while timed", runs_out(4)).predicted_bytes = most_of_it;
  const Answers answers = run(Pass::forward, kCase, false);
  for (const Record& r : answers.records) {
    EXPECT_EQ(r.status, Status::skipped) << r.backend;
    EXPECT_THAT(r.reason, HasSubstr("tried to allocate 34 GiB")) << r.backend;
    EXPECT_FALSE(r.time);
  }
}

TEST_F(RunCase, CasesThatExpectADifferenceOrAThrow) {
  add("wrong", [](int, const Inputs&, Outputs& outputs) { bytes_of_tensor(outputs.o)[1] ^= 0x40; });
  add("honest");
  add("throws", [](int, const Inputs&, Outputs&) { throw std::runtime_error("not with a past"); });
  const Answers differ = run(Pass::forward, kCase + std::string(" # expect=must_differ"), false);
  EXPECT_EQ(differ.records.at(0).status, Status::passed);
  EXPECT_EQ(differ.records.at(1).status, Status::failed);
  EXPECT_EQ(differ.records.at(2).status, Status::error);
  const Answers thrown = run(Pass::forward, kCase + std::string(" # expect=must_throw"), false);
  EXPECT_EQ(thrown.records.at(1).status, Status::failed);
  EXPECT_EQ(thrown.records.at(2).status, Status::passed);
  EXPECT_THAT(thrown.records.at(2).reason, HasSubstr("not with a past"));
  for (const Record& r : thrown.records) EXPECT_FALSE(r.time);
}

TEST_F(RunCase, OutsideTheDeclaredCapabilitiesIsUnsupported) {
  add("packed only");
  const Record r = run(Pass::forward, "attention lq=8 d=16 dtype=fp32 softcap=30").records.at(0);
  EXPECT_EQ(r.status, Status::unsupported);
  EXPECT_THAT(r.reason, HasSubstr("softcap"));
}

TEST_F(RunCase, WhatDoesNotFitIsSkippedBeforeItRuns) {
  add("greedy").predicted_bytes = int64_t(1) << 50;
  const Record r = run(Pass::forward).records.at(0);
  EXPECT_EQ(r.status, Status::skipped);
  EXPECT_THAT(r.reason, StartsWith("needs 1048576.0 GiB"));
}

TEST_F(RunCase, TheLargestCaseOfTheGrammarIsSkippedToo) {
  Declaration any_head_dim = fake_declaration("any head dim");
  any_head_dim.capabilities.max_head_dim = 1 << 12;
  bench.backends.push_back(std::make_unique<FakeBackend>(any_head_dim, FakeBackend::Tamper()));
  EXPECT_EQ(run(Pass::forward, "attention hq=65536 lq=2147483647 d=4096").records.at(0).status, Status::skipped);
}

TEST_F(RunCase, TheEigenBackendIsJudgedByTheOtherOracle) {
  Declaration eigen = fake_declaration("eigen");
  eigen.implementation = "eigen";
  bench.backends.push_back(std::make_unique<FakeBackend>(eigen));
  const Record r = run(Pass::backward).records.at(0);
  EXPECT_EQ(r.status, Status::passed) << r.reason;
  EXPECT_EQ(r.oracle, "torch");
}

TEST_F(RunCase, PaddedCasesPassWithPoison) {
  add("honest");
  for (const char* pad : {"right", "left", "holes"})
    for (Pass pass : {Pass::forward, Pass::backward}) {
      const Record r = run(pass, std::string("attention hq=2 lens=9+0+17 d=16 layout=padded pad=") + pad).records.at(0);
      EXPECT_EQ(r.status, Status::passed) << pad << " " << r.reason;
    }
}

TEST_F(RunCase, AVThatIsReadByTheStridesOfKIsSeenWhereVAloneIsTransposed) {
  for (const auto& [strides, expected] : {std::pair("contiguous", Status::passed), std::pair("transposed", Status::passed),
                                          std::pair("v_transposed", Status::failed)}) {
    const std::string line = fmt::format("attention hq=4 hkv=2 lq=24 d=16 strides={}", strides);
    Declaration declaration = fake_declaration("strides of K");
    declaration.capabilities.strides = {Strides::contiguous, Strides::transposed, Strides::v_transposed};
    bench.backends.clear();
    bench.backends.push_back(std::make_unique<FakeBackend>(declaration, [&](int, const Inputs& inputs, Outputs& outputs) {
      Inputs read = inputs;
      read.v = inputs.v.as_strided(inputs.v.sizes(), inputs.k.strides(), 0);
      outputs.o = emulate(parse_case(line), read, declaration.profile, Conventions::EmptyRow::zero).o;
    }));
    const Record r = run(Pass::forward, line).records.at(0);
    EXPECT_EQ(r.status, expected) << strides << ": " << r.reason;
  }
}

TEST_F(RunCase, TheFirstWindowOfAPaddedCaseIsJudgedToo) {
  const std::string line = "attention hq=4 hkv=2 lens=24+9 d=16 dtype=bf16 layout=padded";
  add("right").tamper_with_op = [](Outputs&) {};
  add("idle").tamper_with_op = [](Outputs& packed) {
    for (const at::Tensor& t : {packed.o, packed.dq})
      if (t.defined()) std::memset(t.data_ptr(), 0, t.nbytes());
  };
  for (Pass pass : {Pass::forward, Pass::backward}) {
    const Answers answers = run(pass, line, false);
    EXPECT_EQ(answers.records[0].status, Status::passed) << answers.records[0].reason;
    EXPECT_EQ(answers.records[0].time->windows.count("op"), 1u);
    EXPECT_EQ(answers.records[1].status, Status::failed);
    EXPECT_THAT(answers.records[1].reason, HasSubstr("timed call of op gave another result"));
    EXPECT_FALSE(answers.records[1].time);
  }
}

TEST_F(RunCase, TimesOfSeveralRegimesAreTheRecordsOwnAndOthers) {
  FakeBackend& backend = add("honest");
  backend.tamper_with_op = [](Outputs&) {};  // a window besides the one that is judged
  CaseData data(parse_case("attention hq=4 hkv=2 lens=24+9 d=16 dtype=bf16 layout=padded", "test"), bench.device,
                bench.calibration);
  Attempt attempt(backend, Pass::forward, bench.device, data, [](const Attempt&, const char*) {});
  attempt.judge();
  const auto time_of = [](double median_us) {
    WindowTime time;
    time.median_us = median_us;
    return time;
  };
  attempt.take_times({{{{"cooled", time_of(100)}, {"sustained", time_of(200)}}, ""}, {{{"sustained", time_of(300)}}, ""}}, 7);
  const Record& record = attempt.record();
  ASSERT_TRUE(record.time) << record.reason;
  EXPECT_EQ(record.time->regime, "cooled");
  EXPECT_EQ(record.time->windows.size(), 1u);
  EXPECT_EQ(record.time->order_seed, 7u);
  ASSERT_EQ(record.other_regimes.size(), 1u);
  EXPECT_EQ(record.other_regimes[0].regime, "sustained");
  EXPECT_EQ(record.other_regimes[0].windows.at("op").median_us, 200);
  EXPECT_EQ(record.other_regimes[0].windows.at("op+layout").median_us, 300);
  EXPECT_EQ(record.other_regimes[0].order_seed, 7u);
  EXPECT_DOUBLE_EQ(record.time->tflops, 2 * record.other_regimes[0].tflops);
  attempt.end(Status::failed, "judged again");
  EXPECT_FALSE(record.time);
  EXPECT_TRUE(record.other_regimes.empty());
}

TEST_F(RunCase, InputsAreRestoredAfterABackendThatWroteToThemAndThrew) {
  add("culprit", [](int, const Inputs& inputs, Outputs&) {
    std::memset(inputs.v.data_ptr(), 0, inputs.v.nbytes());
    throw std::runtime_error("out of luck");
  });
  add("next");
  const Answers answers = run(Pass::forward);
  EXPECT_EQ(answers.records[0].status, Status::error);
  EXPECT_EQ(answers.records[1].status, Status::passed) << answers.records[1].reason;
}

TEST_F(RunCase, NeitherANanNorAMissingOutputIsADifferenceThatACaseMayExpect) {
  add("nan", [](int, const Inputs&, Outputs& outputs) {
    if (outputs.o.defined()) std::memset(outputs.o.data_ptr(), 0xff, 64);
  });
  add("missing", [](int, const Inputs&, Outputs& outputs) { outputs.o = at::Tensor(); });
  const Answers answers = run(Pass::forward, std::string(kCase) + " # expect=must_differ");
  for (const Record& r : answers.records) EXPECT_EQ(r.status, Status::failed) << r.backend;
}

TEST_F(RunCase, BadRequestsAreAnsweredForEachRun) {
  add("honest");
  const Answers bad_case = run(Request{1, "attention lqq=8 d=16", {{"honest", Pass::forward}, {"honest", Pass::backward}}, true});
  ASSERT_EQ(bad_case.records.size(), 2u);
  EXPECT_EQ(bad_case.records[1].status, Status::error);
  EXPECT_THAT(bad_case.records[1].reason, HasSubstr("lqq"));
  const Answers bad_backend = run(Request{1, kCase, {{"hones", Pass::forward}, {"honest", Pass::forward}}, true});
  ASSERT_EQ(bad_backend.records.size(), 2u);
  EXPECT_THAT(bad_backend.records[0].reason, HasSubstr("no backend 'hones'; it has: honest"));
  EXPECT_EQ(bad_backend.records[1].status, Status::passed);
}

}  // namespace
}  // namespace attnbench
