// The file of limits is held to its word; factors come from null distributions alone, and never from what is wrong.
#include "harness/run/calibration.hpp"

#include <filesystem>
#include <fstream>
#include <numeric>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "harness/run/calibrate.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/null_distributions.hpp"

namespace attnbench {
namespace {

using testing::HasSubstr;

const CellKey kZOfO{"fp32_inside", false, Dtype::bf16, "o", "z", 3};

/// Backends a, b and c are held to be correct.
Calibration small_calibration() {
  Calibration calibration;
  calibration.device = "cpu";
  calibration.about = "for a test";
  calibration.constants.z_floor = 6.5;
  calibration.constants.lse = 4;
  calibration.backends = {"a", "b", "c"};
  calibration.left_out = {{"b", "lse", "its LSE is wrong"}};
  NullCell cell;
  cell.count = 300;
  cell.backends = {"a", "b"};
  cell.max = 0.25;
  cell.factor = 0.5;
  calibration.cells[kZOfO] = cell;
  return calibration;
}

class CalibrationFile : public testing::Test {
 protected:
  CalibrationFile() : file_(std::filesystem::temp_directory_path() / fmt::format("calibration_test_{}.json", getpid())) {}
  ~CalibrationFile() override {
    std::error_code ignored;
    std::filesystem::remove(file_, ignored);
  }

  Calibration read(const std::string& text, const std::string& device = "cpu") const {
    std::ofstream(file_) << text;
    return read_calibration(file_, device);
  }

  std::string refusal(const std::string& text, const std::string& device = "cpu") const {
    try {
      read(text, device);
    } catch (const InfrastructureError& error) {
      return error.what();
    }
    return "";
  }

  const std::filesystem::path file_;
};

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

TEST_F(CalibrationFile, IsReadAsItIsWritten) {
  const Calibration written = small_calibration(), calibration = read(to_text(written));
  EXPECT_EQ(calibration.cells, written.cells);
  EXPECT_EQ(calibration.constants, written.constants);
  EXPECT_EQ(calibration.left_out, written.left_out);
  EXPECT_EQ(calibration.backends, written.backends);
}

TEST_F(CalibrationFile, ThatIsMissingOrBrokenIsASentence) {
  try {
    read_calibration("nowhere/cpu.json", "cpu");
    FAIL();
  } catch (const InfrastructureError& error) {
    EXPECT_THAT(error.what(), HasSubstr("nowhere/cpu.json: without calibration there are no limits"));
  }
  const std::string good = to_text(small_calibration());
  EXPECT_THAT(refusal(good.substr(0, good.size() / 2)), HasSubstr("not JSON"));
  EXPECT_THAT(refusal(good, "cuda"), HasSubstr("expected the calibration of cuda, got that of cpu"));
  EXPECT_THAT(refusal(replaced(good, "\"factor\":0.5", "\"factor\":1.5")), HasSubstr("at most 1"));
  EXPECT_THAT(refusal(replaced(good, "\"factor\":0.5", "\"factor\":0")), HasSubstr("above 0"));
  EXPECT_THAT(refusal(replaced(good, "\"factor\":0.5", "\"factor\":0.2")), HasSubstr("below the largest that was seen"));
  EXPECT_THAT(refusal(replaced(good, "\"z_floor\":6.5", "\"z_floor\":-1")), HasSubstr("z_floor"));
  EXPECT_THAT(refusal(replaced(good, "\"z_floor\"", "\"floor\"")), HasSubstr("z_floor"));
}

/// What a run's header says of the limits: doctored ones leave a trace.
TEST_F(CalibrationFile, HasAnIdentityThatEveryConstantAndFactorChanges) {
  const Calibration calibration = small_calibration();
  const nlohmann::json identity = identity_of(calibration);
  EXPECT_EQ(identity["file"], "cpu.json");
  EXPECT_THAT(identity["fnv1a64"].get<std::string>(), testing::MatchesRegex("[0-9a-f]{16}"));
  EXPECT_EQ(identity_of(read(to_text(calibration))), identity);
  EXPECT_EQ(identity_of(read(nlohmann::json::parse(to_text(calibration)).dump(3))), identity) << "another layout of the file";
  Calibration doctored = calibration;
  doctored.constants.z_floor = 6.6;
  EXPECT_NE(identity_of(doctored), identity);
  doctored = calibration;
  doctored.cells[kZOfO].factor = 0.51;
  EXPECT_NE(identity_of(doctored), identity);
}

TEST_F(CalibrationFile, OfEachKindOfDeviceComesWithTheProgram) {
  for (const char* kind : {"cpu", "cuda"}) {
    const Calibration calibration = read_calibration(calibration_file(kind), kind);
    EXPECT_FALSE(calibration.backends.empty()) << kind;
    if (calibration.made_by.is_null()) {
      EXPECT_THAT(calibration.about, HasSubstr("not calibrated")) << kind;
    }
    int with_a_factor = 0;
    for (const auto& [key, cell] : calibration.cells) {
      const bool enough =
          cell.count >= kFewestResults && cell.cases >= kFewestCases && cell.backends.size() >= kFewestImplementations;
      EXPECT_TRUE(enough || cell.factor == 1) << kind << " " << key.tensor << " " << key.gate;
      if (cell.factor < 1) {
        const bool many = cell.count >= 2000;
        const double low = many ? cell.p99 : cell.p90, high = many ? cell.p999 : cell.p99;
        const double tail = high + (many ? 3 : 4) * (high - low);
        const double margin = cell.cases < kManyCases ? kMarginOfFew : kMarginOfMany;
        const double least = key.gate == "lse" ? 1 / calibration.constants.lse : 0;
        EXPECT_NEAR(cell.factor, std::max({tail, margin * cell.max, least}), 1e-7) << kind << key.tensor << " " << key.gate;
        ++with_a_factor;
      }
      if (key.gate == "lse") {
        EXPECT_GE(cell.factor * calibration.constants.lse, 1) << kind << ": less than one sigma";
      }
    }
    EXPECT_GT(with_a_factor, 30) << kind;
  }
}

TEST(Calibration, HasTheFactorOfACellAnd1Elsewhere) {
  const Calibration calibration = small_calibration();
  EXPECT_EQ(calibration.factor(kZOfO), 0.5);
  CellKey other = kZOfO;
  other.decade = 4;
  EXPECT_EQ(calibration.factor(other), 1);
  EXPECT_TRUE(calibration.is_left_out("b", "lse"));
  EXPECT_FALSE(calibration.is_left_out("b", "o"));
  EXPECT_FALSE(calibration.is_left_out("a", "lse"));
  EXPECT_EQ(decade_of(1000), 2);
  EXPECT_EQ(decade_of(1001), 3);
  EXPECT_EQ(decade_of(1000000), 5);
}

TEST(Calibration, CasesWithLargeScoresHaveCellsOfTheirOwn) {
  const auto large = [](const std::string& line) { return has_large_scores(parse_case(line)); };
  EXPECT_FALSE(large("attention d=64 lq=65"));
  EXPECT_FALSE(large("attention d=64 lq=65 scale=0.2"));
  EXPECT_TRUE(large("attention d=64 lq=65 scale=0.3"));
  EXPECT_TRUE(large("attention d=64 lq=65 scale=-0.3"));
  EXPECT_TRUE(large("attention d=64 lq=65 fill=shifted_negative"));
  CellKey other = kZOfO;
  other.large_scores = true;
  EXPECT_EQ(small_calibration().factor(other), 1);
}

TEST(Calibration, ImplementationsThatRoundNothingInsideShareCells) {
  const Profile flash{"flash"};
  const Profile inside{.name = "flash_fp32_inside", .p = Profile::Probabilities::not_rounded, .rounds_ds = false};
  const auto problem = [](const std::string& keys) { return parse_case("attention d=64 lq=65 " + keys).problem; };
  EXPECT_EQ(calibrated_as(flash, problem("dtype=bf16")), "flash");
  EXPECT_EQ(calibrated_as(flash, problem("dtype=fp32")), "fp32_inside");
  EXPECT_EQ(calibrated_as(inside, problem("dtype=fp16")), "fp32_inside");
  EXPECT_EQ(calibrated_as(flash, problem("dtype=bf16 dropout=0.5:1")), "flash_with_options");
  EXPECT_EQ(calibrated_as(inside, problem("dtype=fp16 softcap=30")), "fp32_inside_with_options");
  EXPECT_EQ(calibrated_as(flash, problem("dtype=bf16 lk=1")), "flash_of_one_key");
  EXPECT_EQ(calibrated_as(flash, problem("dtype=bf16 lk=1 sink=on")), "flash_with_options");
  EXPECT_EQ(calibrated_tensor("dq_given_o"), "dq");
}

TEST(Factor, IsNeverBelowTheLargestSeenAndNeverAbove1) {
  std::vector<double> ratios(1000);
  std::iota(ratios.begin(), ratios.end(), 1);
  for (double& ratio : ratios) ratio /= 5000;            // 0.0002 to 0.2
  EXPECT_NEAR(factor_of(ratios, 200), 1.5 * 0.2, 1e-9);  // above 0.198 + 4 * 0.018: 99 % is 0.198, 90 % is 0.18
  ratios.back() = 0.4;
  EXPECT_NEAR(factor_of(ratios, 200), 0.6, 1e-9);
  ratios.back() = 0.99;
  EXPECT_EQ(factor_of(ratios, 200), 1);
  EXPECT_NEAR(factor_of(std::vector<double>(1000, 0.2), 200), 0.3, 1e-9);
  EXPECT_NEAR(factor_of(std::vector<double>(1000, 0.2), 199), 0.5, 1e-9);
}

Record judged(const std::string& backend, int number, double value, double formula = 1) {
  Record record;
  record.case_line = fmt::format("attention d=64 lq=65 seed={}", number);
  record.backend = backend;
  record.device = "cpu";
  record.errors["o"].gates["z"] = {value, formula / 2, 4160, Gate::Verdict::pass, formula};
  return record;
}

/// Records of these backends, 200 each, whose ratios are about 0.1.
RunData run_of(const std::vector<std::string>& backends) {
  RunData run;
  run.headers.push_back({"run", {"attnbench", "calibrate"}, "now", nlohmann::json::object()});
  for (const std::string& backend : backends) {
    Declaration declaration;
    declaration.name = backend;
    declaration.implementation = backend.substr(0, 1);
    declaration.profile = {.name = "fp32_inside", .p = Profile::Probabilities::not_rounded, .rounds_ds = false};
    run.backends["cpu"].push_back(declaration);
    for (int i = 0; i < 200; ++i) run.records.push_back(judged(backend, i, 0.1 + 0.0001 * i));
  }
  return run;
}

TEST(NullDistributions, GiveAFactorToWhatSeveralImplementationsDid) {
  const Calibration calibration = calibrate(run_of({"a", "b", "c"}), small_calibration());
  const NullCell& cell = calibration.cells.at(kZOfO);
  EXPECT_EQ(cell.count, 600);
  EXPECT_EQ(cell.cases, 200);
  EXPECT_EQ(cell.backends, (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_NEAR(cell.max, 0.1199, 1e-9);
  EXPECT_LT(cell.factor, 0.2);
  EXPECT_GT(cell.factor, cell.max);
  EXPECT_EQ(calibrate(run_of({"a"}), small_calibration()).cells.at(kZOfO).factor, 1);
  Calibration twins = small_calibration();
  twins.backends = {"a", "a2"};
  EXPECT_EQ(calibrate(run_of(twins.backends), twins).cells.at(kZOfO).factor, 1) << "two backends of one implementation";
  RunData alike = run_of({"a", "b"});
  for (Declaration& declaration : alike.backends["cpu"])
    declaration.implementation = declaration.name == "a" ? "eager" : "pytorch_math";
  EXPECT_EQ(calibrate(alike, small_calibration()).cells.at(kZOfO).factor, 1) << "the same matrix products";
}

TEST(NullDistributions, OfOneKeyGiveAFactorToTheLseAlone) {
  RunData run = run_of({"a", "c", "d"});
  for (Record& record : run.records) {
    record.case_line += " lk=1";
    record.errors["lse"].gates["lse"] = record.errors["o"].gates["z"];
  }
  Calibration before = small_calibration();
  before.backends = {"a", "c", "d"};
  const Calibration after = calibrate(run, before);
  CellKey cell{"fp32_inside_of_one_key", false, Dtype::bf16, "lse", "lse", 3};
  EXPECT_LT(after.cells.at(cell).factor, 1);
  cell.tensor = "o";
  cell.gate = "z";
  EXPECT_EQ(after.cells.at(cell).factor, 1);
}

TEST(NullDistributions, NeverMakeTheLimitOfAnLseLessThanOneSigma) {
  RunData run = run_of({"a", "c", "d"});
  for (Record& record : run.records) record.errors = {{"lse", record.errors["o"]}};
  for (Record& record : run.records) record.errors["lse"].gates["lse"] = record.errors["lse"].gates["z"];
  Calibration before = small_calibration();
  before.backends = {"a", "c", "d"};
  const CellKey cell{"fp32_inside", false, Dtype::bf16, "lse", "lse", 3};
  EXPECT_EQ(calibrate(run, before).cells.at(cell).factor, 0.25);
  for (Record& record : run.records) record.errors["lse"].gates["lse"].value *= 3;
  EXPECT_GT(calibrate(run, before).cells.at(cell).factor, 0.45);
}

TEST(NullDistributions, OfTheBiasGiveAFactorWhereNothingIsRoundedInside) {
  RunData run = run_of({"a", "b", "c"});
  for (Record& record : run.records) record.errors["o"].gates["bias"] = record.errors["o"].gates["z"];
  EXPECT_LT(calibrate(run, small_calibration()).cells.at({"fp32_inside", false, Dtype::bf16, "o", "bias", 3}).factor, 1);
  for (Declaration& declaration : run.backends["cpu"]) declaration.profile = {.name = "flash"};
  const Calibration flash = calibrate(run, small_calibration());
  EXPECT_EQ(flash.cells.at({"flash", false, Dtype::bf16, "o", "bias", 3}).factor, 1);
  EXPECT_LT(flash.cells.at({"flash", false, Dtype::bf16, "o", "z", 3}).factor, 1);
}

/// Implementations agree, so that as many results of fewer cases say less.
TEST(NullDistributions, OfFewCasesGiveAWiderFactorOrNone) {
  const auto factor_of_cases = [](int cases) {
    RunData run = run_of({"a", "b", "c", "d", "e"});  // results of two implementations or more
    for (size_t i = 0; i < run.records.size(); ++i)
      run.records[i].case_line = fmt::format("attention d=64 lq=65 seed={}", i % cases);
    Calibration before = small_calibration();
    before.backends = {"a", "b", "c", "d", "e"};
    const NullCell cell = calibrate(run, before).cells.at(kZOfO);
    EXPECT_EQ(cell.cases, cases);
    return cell.factor / cell.max;
  };
  EXPECT_EQ(factor_of_cases(49), 1 / 0.1199);
  EXPECT_NEAR(factor_of_cases(50), kMarginOfFew, 1e-6);
  EXPECT_NEAR(factor_of_cases(199), kMarginOfFew, 1e-6);
  EXPECT_LT(factor_of_cases(200), 2);
}

TEST(NullDistributions, OfOptionsAreKeptAndGiveNoFactor) {
  RunData run = run_of({"a", "b", "c"});
  for (Record& record : run.records) record.case_line += " softcap=30";
  const CellKey cell{"fp32_inside_with_options", false, Dtype::bf16, "o", "z", 3};
  const Calibration after = calibrate(run, small_calibration());
  EXPECT_EQ(after.cells.at(cell).count, 600);
  EXPECT_EQ(after.cells.at(cell).factor, 1);
}

TEST(NullDistributions, LeaveOutWhatIsWrong) {
  RunData run = run_of({"a", "b", "c", "stranger"});
  const NullCell before = calibrate(run_of({"a", "b", "c"}), small_calibration()).cells.at(kZOfO);
  for (Record& record : run.records)
    if (record.backend == "stranger") record.errors["o"].gates["z"].value = 0.9;  // nobody holds it to be correct
  run.records.push_back(judged("a", 1000, 3));                                    // beyond the formula
  run.records.push_back(judged("b", 1001, 0.8));
  run.records.back().errors["o"].gates["nonfinite"] = {1, 0, 64, Gate::Verdict::fail, 0};
  run.records.push_back(judged("b", 1002, 0.8));
  run.records.back().errors["lse"] = run.records.back().errors["o"];
  run.records.back().errors.erase("o");
  const Calibration after = calibrate(run, small_calibration());
  NullCell cell = after.cells.at(kZOfO);
  EXPECT_EQ(cell.beyond_formula, 1);
  cell.beyond_formula = 0;
  EXPECT_EQ(cell, before);
  EXPECT_EQ(after.cells.size(), 1u) << "b's LSE is left out";
}

TEST(CalibrationCheck, CountsTensorsAlarmsAndGatesWithoutPower) {
  RunData run = run_of({"a", "b"});
  CalibrationCheck check = check_calibration(run, small_calibration());
  EXPECT_EQ(check.tensors, 200);
  EXPECT_EQ(check.results, 400);
  EXPECT_EQ(conclude(check).exit_code, kExitOk);
  run.records[0].errors["o"].gates["z"].verdict = Gate::Verdict::no_power;
  run.records[0].status = Status::mistrusted;
  run.records[1].errors["o"].gates["z"].verdict = Gate::Verdict::fail;
  run.records[1].status = Status::failed;
  check = check_calibration(run, small_calibration());
  EXPECT_EQ(check.without_power, 1);
  const auto& counts = check.gates.at({"fp32_inside", "z"});
  EXPECT_EQ(counts.judged, 400);
  EXPECT_EQ(counts.no_power, 1);
  EXPECT_EQ(counts.alarms, 1);
  ASSERT_EQ(check.alarms.size(), 1u);
  EXPECT_EQ(check.alarms[0].what, "z o");
  EXPECT_EQ(conclude(check).exit_code, kExitGate);
  EXPECT_EQ(conclude(CalibrationCheck{}).exit_code, kExitInfrastructure);
}

}  // namespace
}  // namespace attnbench
