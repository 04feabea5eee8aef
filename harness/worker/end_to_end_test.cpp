// The two executables together, with the real backends: a run of the suite smoke, and the number of judged records.
// No LibTorch here: its libraries export a std::filesystem::remove_all of their own, which crashes.

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "harness/run/exit_code.hpp"
#include "harness/run/plan.hpp"
#include "harness/run/planted.hpp"
#include "harness/run/protocol.hpp"
#include "harness/run/signature_book.hpp"
#include "harness/run/test_attnbench.hpp"
#include "harness/run/test_device.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

constexpr unsigned kSeed = 20261121;
constexpr int kKills = 3;

json expected_counts() {
  std::ifstream file(fs::path(ATTNBENCH_SOURCE_DIR) / "cases" / "expected_counts.json");
  return json::parse(file);
}

void count_one(json& counts, const std::string& backend, Pass pass, Dtype dtype) {
  json& number = counts[backend][std::string(name_of(pass))][std::string(name_of(dtype))];
  number = number.is_null() ? 1 : number.get<int>() + 1;
}

class EndToEnd : public Attnbench {
 protected:
  /// Exit code of a shell command, run in the test's folder; what it prints is in console().
  int shell(const std::string& command) {
    const int status = std::system(fmt::format("cd '{}' && {} > console 2>&1", folder_.string(), command).c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string console() const { return read_text(folder_ / "console"); }

  /// The record that the repro line of `record` makes, typed as it was recorded: with the executable for the word attnbench.
  Record reproduced(const Record& record) {
    const std::string word = "attnbench ";
    EXPECT_TRUE(record.repro.starts_with(word)) << record.repro;
    fs::remove_all(folder_ / "runs");
    last_exit_code_ = shell(fmt::format("'{}' {}", ATTNBENCH_EXECUTABLE, record.repro.substr(word.size())));
    const RunData again = read_run(fs::directory_iterator(folder_ / "runs")->path());
    EXPECT_EQ(again.records.size(), 1u);
    return again.records.at(0);
  }
  int last_exit_code_ = -1;

  /// 12 small cases, all backends and passes.
  std::vector<std::string> small_cases(const std::string& out) const {
    return {"--case", "attention lq=1,2,3,4,5,6,7,8,9,10,11,12 d=8", "--check-only", "--gate", "none", "--out", path(out)};
  }
};

TEST_F(EndToEnd, SmokePassesWithinAMinuteAndJudgesWhatItShould) {
  const Answer answer = run({"--suite", "smoke", "--out", path("out")}, "none");
  ASSERT_EQ(answer.exit_code, 0) << answer.out;
  rusage used{};
  getrusage(RUSAGE_CHILDREN, &used);  // processor time: a machine that is busy with something else is no failure
  EXPECT_LT(used.ru_utime.tv_sec + used.ru_stime.tv_sec, 60) << "seconds of all its threads";

  const RunData smoke = results();
  EXPECT_NE(answer.out.find("8 of 8 canaries caught"), std::string::npos) << answer.out;  // as many as smoke.suite names
  json judged = json::object();
  std::set<std::string> timed;
  for (const Record& record : smoke.records) {
    EXPECT_NE(record.status, Status::error) << record.repro << ": " << record.reason;
    EXPECT_TRUE(!record.time || record.status == Status::passed) << record.repro;
    if (record.time) timed.insert(record.backend);
    if (is_judged(record)) count_one(judged, record.backend, record.pass, parse_case(record.case_line).problem.dtype);
  }
  EXPECT_EQ(judged, expected_counts().at("smoke")) << json::diff(expected_counts().at("smoke"), judged);
  for (const Declaration& backend : smoke.backends.at("cpu"))
    EXPECT_EQ(timed.contains(backend.name), backend.operation == "attention" && runs_on(backend, kCpu))
        << backend.name << ": every backend of the CPU has a number";
  EXPECT_FALSE(smoke.comparisons.empty());
  for (const char* report : {"results.csv", "summary.md", "benchmark.json"})
    EXPECT_TRUE(fs::exists(folder_ / "out" / report)) << report;
}

/// Every gate has a defect that it alone sees, every defect a case that shows it, and nothing survives that is not known to.
TEST_F(EndToEnd, TheSelftestSeesEveryDefect) {
  const Answer answer = run({"selftest", "--device", "cpu", "--out", path("out")}, "none");
  EXPECT_EQ(answer.exit_code, 0) << answer.out;
  const json selftest = json::parse(read_text(folder_ / "out" / "selftest.json"));
  EXPECT_GT(selftest.at("tensors"), 200);
  EXPECT_EQ(selftest.at("false_alarms"), 0);
  for (const char* gate : {"bias", "exact_zero", "lse", "nonfinite", "rms", "z"})
    EXPECT_GT(selftest.at("gates").at(gate).at("alone"), 0) << gate;
  std::set<std::string> planted, seen;
  for (const Record& record : results().records) {
    if (!is_planted(record.backend)) continue;
    planted.insert(record.backend);
    if (record.status == Status::failed) seen.insert(record.backend);
  }
  EXPECT_EQ(planted, seen);
  std::set<std::string> defects;
  for (const std::string& backend : planted) defects.insert(defect_of(backend));
  EXPECT_EQ(defects.size(), selftest.at("defects"));
  const RunData run_of_all = results();
  for (const Declaration& backend : run_of_all.backends.at("cpu"))
    EXPECT_EQ(planted_in(backend.version).empty(), !is_planted(backend.name)) << backend.name << " says what it does wrong";

  // What cases/README.md publishes of the likely mistake: 76.9 % and 90.2 %; 86.7 % of 73.0 %; 26.0 %.
  const SignatureBook signatures = collect_signatures(results());
  EXPECT_EQ(signatures.defects, read_signatures("").defects) << "cases/README.md says how cases/signatures.json is written anew";
  const BookScore score = leave_one_line_out(signatures);
  EXPECT_GT(score.signatures, 1500);
  EXPECT_GT(double(score.first), 0.72 * double(score.signatures));
  EXPECT_GT(double(score.among_three), 0.86 * double(score.signatures));
  EXPECT_GT(double(score.first_of_known), 0.82 * double(score.signatures - score.unknown));
  EXPECT_LT(double(score.unknown), 0.31 * double(score.signatures));
  EXPECT_LT(double(score.mistaken), 0.3 * double(score.signatures));
}

/// On a case that the matrix does not hold.
TEST_F(EndToEnd, AFailureTellsWhereItIsAndWhatItLooksLike) {
  const std::string line = "attention hq=4 hkv=2 d=64 lens=100+66 klens=80+190 mask=causal";
  const std::string out =
      run({"--case", line, "--backend",
           "flash_varlen:lse_row_off_by_one,flash_varlen:dk_dv_one_head,flash_varlen:dq_zero,flash_varlen:lse_in_log2",
           "--check-only", "--out", path("out")},
          "none")
          .out;
  for (const char* part :
       {"dq_given_o: query 63 of every sequence: explains 512 of 512 bad elements; 512 of its 512 are bad",
        "likely lse_row_off_by_one: the last row of a tile of 64 takes the LSE of the row before",
        "dq_given_o: query head 0 of each key head: explains", "likely dk_dv_one_head: ", "likely dq_zero: dQ is 0",
        "likely lse_in_log2: ", "  map    dq_given_o: a column is 4 queries of each sequence"})
    EXPECT_THAT(out, HasSubstr(part));
  for (size_t at = out.find("\nFAILED"); at != std::string::npos; at = out.find("\nFAILED", at + 1)) {
    const std::string finding = out.substr(at + 1, out.find("\n  repro", at) - at);
    EXPECT_LE(std::count(finding.begin(), finding.end(), '\n') + 1, 25) << finding;
  }
}

/// What our backends declare of their bits holds, and an audit sees that others' do depend on something.
TEST_F(EndToEnd, AnAuditOfOurBackendsFindsEveryPromiseKept) {
  const Answer answer =
      run({"audit", "--device", "cpu", "--case", "attention hq=4 hkv=2 d=64 lens=65+17+128+1 dtype=bf16,fp32 mask=causal",
           "--backend", "flash_varlen,eigen,sdpa_flash", "--repeats", "10", "--out", path("out")},
          "none");
  EXPECT_EQ(answer.exit_code, 0) << answer.out;
  int64_t promised = 0, differing = 0;
  for (const Record& record : results().records)
    for (const Invariance& i : record.invariance) {
      promised += i.promised && i.outcome == Invariance::Outcome::equal;
      differing += i.outcome == Invariance::Outcome::differs;
      EXPECT_TRUE(!i.promised || i.outcome == Invariance::Outcome::equal) << record.repro << ": " << sentence_of(i);
    }
  EXPECT_GE(promised, 2 * 2 * 5 * 5) << "cases, backends, relations, tensors";
  EXPECT_GT(differing, 0) << "sdpa_flash sums padded rows in another order than packed ones";
}

TEST_F(EndToEnd, ARaceOfOurBackendsRepeats) {
  const Answer answer = run({"--device", "cpu", "--case", "attention b=9 hq=2 hkv=1 d=64 lq=33 mask=causal # repeats=30 timed=no",
                             "--backend", "flash_varlen,eigen", "--out", path("out")},
                            "none");
  EXPECT_EQ(answer.exit_code, 0) << answer.out;
  EXPECT_EQ(results().records.size(), 4u);
  for (const Record& record : results().records)
    for (const Invariance& i : record.invariance) EXPECT_EQ(i.outcome, Invariance::Outcome::equal) << record.repro;
}

/// A few seeds in place of the whole check: a correct kernel passes, one with a small gain error does not.
TEST_F(EndToEnd, ACheckOfTheLimitsAccusesADefectAndNothingElse) {
  const auto check = [&](const std::string& backend, const std::string& out) {
    return run(
        {"calibrate", "--check", "--device", "cpu", "--seeds", "7..8", "--random", "2", "--backend", backend, "--out", path(out)},
        "none");
  };
  const Answer sound = check("flash_varlen,eigen", "sound");
  EXPECT_EQ(sound.exit_code, 0) << sound.out;
  const json counted = json::parse(read_text(folder_ / "sound" / "check.json"));
  EXPECT_GT(counted.at("tensors"), 200);
  EXPECT_TRUE(counted.at("alarms").empty());
  const Answer planted = check("flash_varlen:log2e_short", "planted");
  EXPECT_EQ(planted.exit_code, 1) << planted.out;
  EXPECT_THAT(planted.out, HasSubstr("of correct implementations accused"));
}

TEST_F(EndToEnd, AReproLineReproduces) {
  ASSERT_EQ(
      run({"--case", "attention hq=2 lens=9+0+17 d=16 layout=padded pad=left", "--backend", "eager,eigen", "--out", path("out")},
          "none")
          .exit_code,
      0);
  for (const Record& record : results().records) {
    const Record again = reproduced(record);
    EXPECT_EQ(again.status, Status::passed) << again.reason;
    EXPECT_EQ(again.case_line, record.case_line);
    EXPECT_EQ(again.backend, record.backend);
    EXPECT_EQ(again.pass, record.pass);
    EXPECT_EQ(again.time.has_value(), record.time.has_value());
  }
}

TEST_F(EndToEnd, AReproLineShowsARedRecordAgain) {
  ASSERT_EQ(run({"--case", "attention lq=128 d=64", "--backend", "flash_varlen:lse_in_log2", "--pass", "forward", "--gate",
                 "none", "--out", path("out")},
                "none")
                .exit_code,
            kExitOk);
  const Record red = only(results(), Status::failed);
  const Record again = reproduced(red);
  EXPECT_EQ(again.status, Status::failed);
  EXPECT_EQ(again.reason, red.reason);
  EXPECT_THAT(console(), HasSubstr(red.reason));
  EXPECT_EQ(shell(fmt::format("'{}' {} --gate all", ATTNBENCH_EXECUTABLE, red.repro.substr(red.repro.find(' ')))), kExitGate);
}

/// By its case line alone the first would fail, and the second would be an error.
TEST_F(EndToEnd, AReproLineExpectsWhatTheCaseExpected) {
  ASSERT_EQ(run({"--case", "llama hq=2 d=8 s=9 lens=5+9 pad=left dtype=fp16 # expect=must_differ instead=ignores_mask",
                 "--backend", "internvl_sdpa", "--out", path("out")},
                "none")
                .exit_code,
            kExitOk);
  const Record differs = results().records.at(0);
  EXPECT_EQ(reproduced(differs).reason, differs.reason);
  EXPECT_EQ(last_exit_code_, kExitOk);
  run({"--case", "llama hq=2 d=8 s=9 past=4 # expect=must_throw message=\"a \\\"past\\\"\"", "--backend", "internvl_sdpa",
       "--out", path("other")},
      "none");
  const Record throws = results("other").records.at(0);
  EXPECT_EQ(throws.status, Status::failed);
  EXPECT_EQ(reproduced(throws).reason, throws.reason);
}

TEST_F(EndToEnd, ARecordIsAsSafeAsThePlaceOfItsCase) {
  ASSERT_EQ(run({"--case", "llama hq=2 d=256 s=5 assume_sm=8.6 assume_flash_attn=2.5.4 # pass=backward expect=must_throw",
                 "--backend", "flagembedding", "--assume-sm", "9.0", "--out", path("out")},
                "none")
                .exit_code,
            kExitOk);
  const Safety safety = results().records.at(0).safety;
  EXPECT_EQ(safety.verdict, "refused");
  EXPECT_EQ(safety.assumed_sm, 86);
  EXPECT_THAT(safety.reason, HasSubstr("a head dim above 192"));
  EXPECT_THAT(read_text(folder_ / "out" / "summary.md"),
              HasSubstr("flagembedding backward on an assumed SM 8.6: verdict refused"));
}

/// internvl, which may call a kernel, left the case to a layer that calls none.
TEST_F(EndToEnd, ARecordIsAsSafeAsTheLayerThatRan) {
  run({"--case", "llama hq=2 d=8 s=5 assume_sm=7.5 # pass=forward", "--backend", "internvl", "--out", path("out")}, "none");
  const Record record = results().records.at(0);
  EXPECT_THAT(record.choice, HasSubstr("internvl_sdpa: "));
  EXPECT_TRUE(record.safety.sm_below_8);
  EXPECT_EQ(record.safety.verdict, "ok") << record.safety.reason;
}

TEST_F(EndToEnd, ACoordinatorThatIsKilledLosesNothing) {
  ASSERT_EQ(run(small_cases("undisturbed"), "none").exit_code, 0);
  std::mt19937 random(kSeed);
  for (int i = 0; i < kKills; ++i) {
    const size_t written = lines_written();
    const pid_t process = start(i == 0 ? small_cases("out") : std::vector<std::string>{"--resume", path("out")}, "none");
    wait_for(written + random() % 20);
    kill(process, SIGKILL);
    EXPECT_EQ(finish(process).exit_code, 128 + SIGKILL);
  }
  const Answer answer = run({"--resume", path("out")}, "none");
  EXPECT_EQ(answer.exit_code, 0) << answer.out;
  EXPECT_EQ(outcomes(results()), outcomes(results("undisturbed")));
}

TEST_F(EndToEnd, AWorkerThatIsKilledCostsTheRunThatWasHit) {
  ASSERT_EQ(run(small_cases("undisturbed"), "none").exit_code, 0);
  std::mt19937 random(kSeed);
  const pid_t process = start(small_cases("out"), "none");
  for (int i = 0; i < kKills; ++i) {
    wait_for(lines_written() + random() % 20);
    const std::optional<pid_t> worker = worker_of(process);
    ASSERT_TRUE(worker);
    kill(*worker, SIGKILL);
  }
  const Answer answer = finish(process);
  EXPECT_EQ(answer.exit_code, 0) << answer.out;
  expect_only_kills_differ(results(), results("undisturbed"), kKills);
}

TEST_F(EndToEnd, ADeviceThatIsNotThereIsASentence) {
  for (const char* device : {"cuda:99", "cuda:1234", "tpu"}) {
    const Answer answer = run({"--case", "attention lq=1 d=8", "--device", device, "--out", path("out")}, "none");
    EXPECT_EQ(answer.exit_code, kExitUsage) << answer.out;
    EXPECT_TRUE(answer.out.starts_with("attnbench: --device ")) << answer.out;
    EXPECT_EQ(std::count(answer.out.begin(), answer.out.end(), '\n'), 1) << answer.out;
    EXPECT_FALSE(fs::exists(folder_ / "out"));
  }
}

TEST_F(EndToEnd, LayersCallTheAttentionThatIsAskedFor) {
  const auto run_over = [&](const std::vector<std::string>& words) {
    fs::remove_all(folder_ / "out");
    return run(
        joined({"--case", "llama hq=2 d=8 s=5", "--backend", "flagembedding,hf_eager", "--check-only", "--out", path("out")},
               words),
        "none");
  };
  const auto of_layer = [&](const std::string& layer) {
    const RunData done = results();
    const auto found = std::ranges::find(done.records, layer, &Record::backend);
    return found == done.records.end() ? Record{} : *found;
  };
  ASSERT_EQ(run_over({}).exit_code, kExitOk);
  EXPECT_EQ(of_layer("flagembedding").attention, "flash_varlen");
  EXPECT_EQ(of_layer("hf_eager").attention, "");
  EXPECT_THAT(of_layer("flagembedding").repro, testing::Not(HasSubstr("--attention")));
  ASSERT_EQ(run_over({"--attention", "sdpa_math"}).exit_code, kExitOk);
  EXPECT_EQ(of_layer("flagembedding").attention, "sdpa_math");
  EXPECT_EQ(reproduced(of_layer("flagembedding")).attention, "sdpa_math");
  EXPECT_THAT(run_over({"--attention", "flash_varln"}).out,
              HasSubstr("--attention flash_varln: no such backend; did you mean 'flash_varlen'?"));
  EXPECT_EQ(run_over({"--attention", "flash_varln"}).exit_code, kExitUsage);
  EXPECT_THAT(run_over({"--attention", "torch_flash_varlen"}).out, HasSubstr("it runs on cuda, and the device is cpu"));
}

TEST_F(EndToEnd, AutoPicksForAnAssumedSmAndSaysWhy) {
  const Answer answer = run({"--case", "llama hq=2 d=8 s=5", "--backend", "flagembedding", "--check-only", "--attention", "auto",
                             "--assume-sm", "7.5", "--out", path("out")},
                            "none");
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("Picked for layers\n  sdpa_math: "));
  const Record record = results().records.at(0);
  EXPECT_EQ(record.attention, "sdpa_math");
  EXPECT_THAT(record.choice, HasSubstr("flash_varlen [refused: attnbench's GPU kernels need SM 8.0"));
  EXPECT_EQ(record.safety.verdict, "ok");
  EXPECT_TRUE(record.safety.sm_below_8);
  const Record again = reproduced(record);
  EXPECT_EQ(again.attention, "sdpa_math");
  EXPECT_EQ(again.choice, record.choice);
  fs::remove_all(folder_ / "out");
  run({"--case", "llama hq=2 d=8 s=5", "--backend", "flagembedding", "--check-only", "--out", path("out"), "--assume-sm", "7.5"},
      "none");
  EXPECT_EQ(results().records.at(0).attention, "flash_varlen");
  EXPECT_EQ(results().records.at(0).safety.verdict, "refused");
}

/// What would be judged by the declared capabilities equals what was committed: neither a suite nor a backend can
/// lose cases in silence.
TEST_F(EndToEnd, ExpectedCountsAreThoseOfThePlan) {
  ASSERT_EQ(shell(fmt::format("'{}' --hello", WORKER_EXECUTABLE)), 0) << console();
  const std::vector<Declaration> declarations = json::parse(console()).get<Hello>().backends;
  const json expected = expected_counts();
  for (const std::string& name : known_suites()) {
    json planned = json::object();
    for (const PlannedCase& entry : make_plan({load_suite(name)}, {}, declarations, kCpu))
      for (const auto& [backend, pass] : entry.runs)
        for (const Declaration& declaration : declarations)
          if (declaration.name == backend && !why_not(declaration, entry.c, pass, kCpu))
            count_one(planned, backend, pass, entry.c.problem.dtype);
    if (planned.empty()) {  // its cases are for a GPU
      EXPECT_FALSE(expected.contains(name)) << name;
      continue;
    }
    ASSERT_TRUE(expected.contains(name)) << name << " is missing: scripts/expected_counts writes it from a run";
    EXPECT_EQ(planned, expected[name]) << name << " " << json::diff(expected[name], planned);
  }
}

}  // namespace
}  // namespace attnbench
