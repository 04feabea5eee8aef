// A selftest's answer on records made by hand: each fate of a pair, and each way to exit codes 0, 1 and 77.
#include "harness/run/selftest.hpp"

#include <filesystem>
#include <fstream>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "harness/run/errors.hpp"
#include "harness/run/planted.hpp"

namespace attnbench {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

constexpr const char* kCase = "attention d=64 lq=65";

Record record_of(const std::string& backend, Pass pass, Status status, const std::string& reason = "") {
  Record record;
  record.case_line = kCase;
  record.backend = backend;
  record.device = "cpu";
  record.pass = pass;
  record.status = status;
  record.reason = reason;
  record.repro = fmt::format("attnbench --case \"{}\" --backend {} --pass {}", kCase, backend, name_of(pass));
  if (is_judged(record))
    for (const char* tensor : {"o", "lse"}) record.errors[tensor].gates["z"] = {3, 6, 64, Gate::Verdict::pass};
  return record;
}

Record passed(const std::string& backend, Pass pass = Pass::forward) {
  return record_of(backend, pass, Status::passed);
}

Record failed(const std::string& backend, const std::string& gate, const std::string& tensor, Pass pass = Pass::forward) {
  Record record = record_of(backend, pass, Status::failed, tensor + ": gate " + gate + " is 12, its limit 1");
  record.errors[tensor].gates[gate] = {12, 1, 64, Gate::Verdict::fail};
  return record;
}

Record unsupported(const std::string& backend, const std::string& reason, Pass pass = Pass::forward) {
  return record_of(backend, pass, Status::unsupported, reason);
}

Selftest selftest_of(std::vector<Record> records, const std::vector<KnownSurvivor>& known = {}) {
  RunData run;
  run.records = std::move(records);
  return evaluate_selftest(run, known);
}

Fate fate_of(std::vector<Record> records) {
  const Selftest selftest = selftest_of(std::move(records));
  EXPECT_THAT(selftest.pairs, SizeIs(1));
  return selftest.pairs.empty() ? Fate::outside : selftest.pairs.front().fate;
}

TEST(Planted, NamesAreARealBackendAndADefect) {
  EXPECT_TRUE(is_planted("eager:key_lost"));
  EXPECT_FALSE(is_planted("eager"));
  EXPECT_EQ(real_backend_of("eager:key_lost"), "eager");
  EXPECT_EQ(real_backend_of("eager"), "eager");
  EXPECT_EQ(defect_of("eager:key_lost"), "key_lost");
  EXPECT_EQ(defect_of("eager"), "");
}

TEST(Alarms, AFailedRecordIsToldByItsGates) {
  Record record = failed("eager:x", "z", "dq");
  record.errors["o"].gates["rms"] = {2, 1, 64, Gate::Verdict::fail};
  record.errors["o"].gates["bias"] = {2, 1, 64, Gate::Verdict::no_power};
  EXPECT_THAT(alarms_of(record), ElementsAre(Alarm{"rms", "o"}, Alarm{"z", "dq"}));
  EXPECT_EQ(text_of({"z", "dq"}), "z dq");
  EXPECT_EQ(text_of({"memory", ""}), "memory");
  record.status = Status::passed;  // a case that expects a difference
  EXPECT_THAT(alarms_of(record), SizeIs(0));
}

TEST(Alarms, AWatchCountsBesideTheGates) {
  Record record = failed("eager:x", "z", "dq");
  record.reason = "wrote 4 bytes past the end of its output dq (128 bytes)";
  EXPECT_THAT(alarms_of(record), ElementsAre(Alarm{"memory", ""}, Alarm{"z", "dq"}));
}

TEST(Alarms, EveryReasonHasAWord) {
  const std::vector<std::tuple<Status, std::string, std::string>> reasons{
      {Status::failed, "wrote to its input k", "input"},
      {Status::failed, "wrote 2 bytes before the start of a block (64 bytes) while it prepared the case", "memory"},
      {Status::failed, "o lies in the memory of v: every call writes new outputs", "borrowed"},
      {Status::failed, "left 1 thread to LibTorch, which had 2", "state"},
      {Status::failed, "dq is missing from the outputs", "form"},
      {Status::failed, "o has the shape [1], expected [2]", "form"},
      {Status::failed, "called again with V negated, whose outputs are negated back: o: gate z is 12, its limit 6", "repeat"},
      {Status::failed, "called again with V negated, whose outputs are negated back: wrote to its input q", "input"},
      {Status::failed, "a sentence of tomorrow", "other"},
      {Status::error, "the worker was killed after 300 s of silence (--timeout) in stage run of x forward", "hang"},
      {Status::error, "the worker was killed by signal 11 (SIGSEGV); its log ends: wrote to its input", "crash"},
      {Status::error, "the worker exited with code 3 in stage run of x forward", "crash"},
      {Status::error, "the worker was killed because it did not keep to the protocol (rubbish)", "protocol"},
      {Status::error, "the worker ended the request without a result for this run", "protocol"},
      {Status::error, "wrote 4 bytes past the end of a block (64 bytes), then: out of range", "memory"},
      {Status::error, "the tensor has no storage", "exception"}};
  for (const auto& [status, reason, word] : reasons) {
    Record record = record_of("eager:x", Pass::forward, status, reason);
    EXPECT_THAT(alarms_of(record), ElementsAre(Alarm{word, ""})) << reason;
  }
}

TEST(Selftest, APairIsCaughtByEitherPass) {
  EXPECT_EQ(fate_of({passed("eager:x"), failed("eager:x", "z", "dq", Pass::backward)}), Fate::caught);
  EXPECT_EQ(fate_of({record_of("eager:x", Pass::forward, Status::error, "threw"), passed("eager:x", Pass::backward)}),
            Fate::caught);
  EXPECT_EQ(fate_of({unsupported("eager:x", "equivalent: no"), failed("eager:x", "z", "dq", Pass::backward)}), Fate::caught);
}

TEST(Selftest, APairThatOnlyErredIsCountedApart) {
  const Record erred = record_of("eager:x", Pass::forward, Status::error, "the worker was killed by signal 11 (SIGSEGV)");
  const Selftest alone = selftest_of({passed("eager:x", Pass::backward), erred});
  EXPECT_EQ(alone.only_erred(), 1);
  EXPECT_EQ(alone.pairs.front().reason, erred.reason);
  EXPECT_THAT(conclude(alone).sentence, HasSubstr("1 caught (1 by an error alone), 0 equivalent"));
  EXPECT_EQ(selftest_of({erred, failed("eager:x", "z", "dq", Pass::backward)}).only_erred(), 0);
}

TEST(Selftest, APairIsEquivalentIfNoPassSaysMore) {
  EXPECT_EQ(fate_of({unsupported("eager:x", "equivalent: no mask"), unsupported("eager:x", "equivalent: no", Pass::backward)}),
            Fate::equivalent);
  EXPECT_EQ(fate_of({unsupported("eager:x", "equivalent: no mask"), unsupported("eager:x", "no backward", Pass::backward)}),
            Fate::equivalent);
  EXPECT_EQ(fate_of({unsupported("eager:x", "equivalent: no mask"), passed("eager:x", Pass::backward)}), Fate::survived);
}

TEST(Selftest, APairThatNobodyJudgedIsOutside) {
  EXPECT_EQ(fate_of({unsupported("eager:x", "dtype"), record_of("eager:x", Pass::backward, Status::skipped, "no memory")}),
            Fate::outside);
  EXPECT_EQ(selftest_of({unsupported("eager:x", "dtype")}).counted_pairs(), 0);
}

TEST(Selftest, APairSurvivesIfItPassesOrIsMistrusted) {
  EXPECT_EQ(fate_of({passed("eager:x"), passed("eager:x", Pass::backward)}), Fate::survived);
  EXPECT_EQ(fate_of({record_of("eager:x", Pass::forward, Status::mistrusted, "no power")}), Fate::survived);
  EXPECT_EQ(fate_of({passed("eager:x"), unsupported("eager:x", "no backward", Pass::backward)}), Fate::survived);
}

TEST(Selftest, ASurvivorNamesItsLargestStatistic) {
  Record near = passed("eager:x", Pass::backward);
  near.errors["dv"].gates["rms"] = {0.97, 1, 64, Gate::Verdict::pass};
  near.errors["dv"].gates["bias"] = {9, 1, 64, Gate::Verdict::no_power};
  near.errors["dv"].gates["nonfinite"] = {0, 0, 64, Gate::Verdict::pass};
  const PlantedPair pair = selftest_of({passed("eager:x"), near}).pairs.front();
  ASSERT_TRUE(pair.largest);
  EXPECT_EQ(pair.largest->gate, "rms");
  EXPECT_EQ(pair.largest->tensor, "dv");
  EXPECT_DOUBLE_EQ(pair.largest->ratio(), 0.97);
  EXPECT_EQ(pair.repro, near.repro);
  EXPECT_FALSE(selftest_of({record_of("eager:x", Pass::forward, Status::passed)}).pairs.front().repro.empty());
}

TEST(Selftest, OneDefectOfTwoBackendsIsOne) {
  const Selftest selftest = selftest_of({failed("eager:x", "z", "o"), failed("eigen:x", "z", "o"), failed("eigen:y", "z", "o")});
  EXPECT_THAT(selftest.defects(), ElementsAre("x", "y"));
  EXPECT_EQ(selftest.count(Fate::caught), 3);
}

TEST(SelftestExitCode, IsZeroWhereEveryDefectIsCaught) {
  const Selftest selftest = selftest_of({passed("eager"), failed("eager:x", "z", "o")});
  EXPECT_EQ(selftest.tensors, 2);
  EXPECT_EQ(conclude(selftest).exit_code, kExitOk);
  EXPECT_EQ(conclude(selftest).sentence,
            "passed: 1 pair of 1 planted defect: 1 caught, 0 equivalent, 0 survived, 0 of them known; 0 false alarms in 2 judged "
            "tensors of sound backends");
}

TEST(SelftestExitCode, IsOneForASurvivorUnlessItIsKnown) {
  const std::vector<Record> records{passed("eager:x"), failed("eager:y", "z", "o")};
  EXPECT_EQ(conclude(selftest_of(records)).exit_code, kExitGate);
  EXPECT_THAT(conclude(selftest_of(records)).sentence, HasSubstr("FAILED: 1 survivor is not known:"));
  const Selftest known = selftest_of(records, {{"eager:x", kCase, ""}});
  EXPECT_EQ(conclude(known).exit_code, kExitOk) << conclude(known).sentence;
  EXPECT_TRUE(known.pairs.front().known);
  EXPECT_EQ(conclude(selftest_of(records, {{"eager:x", "attention d=64 lq=66", ""}})).exit_code, kExitGate);
  EXPECT_EQ(conclude(selftest_of(records, {{"eigen:x", kCase, ""}})).exit_code, kExitGate);
}

TEST(SelftestExitCode, ASurvivorIsKnownOnItsKindOfDeviceAlone) {
  Record on_gpu = passed("eager:x");
  on_gpu.device = "cuda:1";
  const std::vector<Record> records{on_gpu, failed("eager:y", "z", "o")};
  EXPECT_EQ(conclude(selftest_of(records, {{"eager:x", kCase, "", "cuda"}})).exit_code, kExitOk);
  EXPECT_EQ(conclude(selftest_of(records, {{"eager:x", kCase, "", "cpu"}})).exit_code, kExitGate);
}

TEST(SelftestExitCode, IsOneForAKnownSurvivorThatSurvivesNoMore) {
  const std::vector<KnownSurvivor> known{{"eager:x", kCase, ""}};
  for (const Record& record : {failed("eager:x", "z", "o"), unsupported("eager:x", "equivalent: no mask")}) {
    const Selftest selftest = selftest_of({record, failed("eager:y", "z", "o")}, known);
    EXPECT_THAT(selftest.stale, SizeIs(1));
    EXPECT_EQ(conclude(selftest).exit_code, kExitGate);
    EXPECT_THAT(conclude(selftest).sentence, HasSubstr("1 known survivor survives no more:"));
  }
  EXPECT_EQ(conclude(selftest_of({failed("eager:y", "z", "o")}, known)).exit_code, kExitOk) << "it did not run";
  EXPECT_EQ(conclude(selftest_of({unsupported("eager:x", "dtype"), failed("eager:y", "z", "o")}, known)).exit_code, kExitOk);
}

TEST(SelftestExitCode, IsTheSameWhetherAPairThatSurvivesSometimesDoes) {
  const std::vector<KnownSurvivor> known{{"eager:x", kCase, "", "cpu", /*sometimes=*/true}};
  EXPECT_EQ(conclude(selftest_of({failed("eager:x", "z", "o")}, known)).exit_code, kExitOk);
  EXPECT_EQ(conclude(selftest_of({passed("eager:x"), failed("eager:y", "z", "o")}, known)).exit_code, kExitOk);
}

TEST(SelftestExitCode, IsOneForAFalseAlarm) {
  Record accused = failed("eager", "z", "o");
  accused.errors["o"].gates["rms"] = {2, 1, 64, Gate::Verdict::fail};
  const Selftest selftest = selftest_of({accused, failed("eager:x", "z", "o")});
  ASSERT_THAT(selftest.false_alarms, SizeIs(1)) << "one tensor, two gates";
  EXPECT_EQ(selftest.false_alarms.front().what, "rms, z of o");
  EXPECT_EQ(selftest.tensors, 2);
  EXPECT_EQ(conclude(selftest).exit_code, kExitGate);
  EXPECT_THAT(conclude(selftest).sentence, HasSubstr("FAILED: 1 false alarm:"));
  const Record crashed = record_of("eager", Pass::forward, Status::error, "the worker was killed by signal 11 (SIGSEGV)");
  const Selftest without_gate = selftest_of({crashed, failed("eager:x", "z", "o")});
  ASSERT_THAT(without_gate.false_alarms, SizeIs(1));
  EXPECT_EQ(without_gate.false_alarms.front().what, "crash");
}

TEST(SelftestExitCode, SaysWhereNoDefectCouldShow) {
  EXPECT_EQ(conclude(selftest_of({passed("eager"), unsupported("eager:x", "equivalent: no mask")})).exit_code, kExitAllSkipped);
  EXPECT_EQ(conclude(selftest_of({unsupported("eager:x", "dtype")})).exit_code, kExitAllSkipped);
}

class KnownSurvivorsFile : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(file_); }
  std::vector<KnownSurvivor> read(const std::string& text) const {
    std::ofstream(file_) << text;
    return read_known_survivors(file_);
  }
  std::string refusal(const std::string& text) const {
    try {
      read(text);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "it was read";
  }
  const std::filesystem::path file_ = std::filesystem::temp_directory_path() / fmt::format("known_survivors-{}.json", getpid());
};

TEST_F(KnownSurvivorsFile, HoldsPairsWithTheirReasons) {
  const auto known = read(R"({"survivors":[{"defect":"eager:x","case":"attention lq=65 d=64 # timed=no","why":"small"}]})");
  ASSERT_THAT(known, SizeIs(1));
  EXPECT_EQ(known.front().case_line, kCase) << "canonical, whatever was written";
  EXPECT_EQ(known.front().why, "small");
  EXPECT_EQ(known.front().device, "cpu");
  EXPECT_EQ(read(R"({"survivors":[{"defect":"eager:x","case":"attention lq=65 d=64","device":"cuda"}]})").front().device, "cuda");
  EXPECT_FALSE(known.front().sometimes);
  EXPECT_TRUE(read(R"({"survivors":[{"defect":"eager:x","case":"attention lq=65 d=64","sometimes":true}]})").front().sometimes);
  EXPECT_THAT(read(R"({"survivors":[]})"), SizeIs(0));
}

TEST_F(KnownSurvivorsFile, ThatCannotBeReadIsASentence) {
  EXPECT_THAT(refusal("[]"), HasSubstr("cannot be read"));
  EXPECT_THAT(refusal("{"), HasSubstr("cannot be read"));
  EXPECT_THAT(refusal(R"({"survivors":[{"defect":"eager","case":"attention d=64 lq=65"}]})"),
              HasSubstr("expected BACKEND:DEFECT"));
  EXPECT_THAT(refusal(R"({"survivors":[{"defect":"eager:x","case":"attention d=64 lq=65","device":"tpu"}]})"),
              HasSubstr("expected one of cpu, cuda, got \"tpu\""));
  EXPECT_THAT(refusal(R"({"survivors":[{"defect":"eager:x","case":"attention dd=64"}]})"), HasSubstr("dd"));
  EXPECT_THROW(read_known_survivors("no/such/file"), UsageError);
}

TEST_F(KnownSurvivorsFile, ComesWithTheProgram) {
  EXPECT_NO_THROW(read_known_survivors(""));
}

}  // namespace
}  // namespace attnbench
