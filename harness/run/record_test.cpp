#include "harness/run/record.hpp"

#include <cmath>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/json_reader.hpp"
#include "harness/run/test_records.hpp"

namespace attnbench {
namespace {

using nlohmann::json;
using testing::HasSubstr;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::string why_not_a_record(json line) {
  try {
    record_from(line);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "it was read";
}

TEST(Record, ComesBackAsItWasWritten) {
  const json line = to_line(full_record());
  const json again = to_line(record_from(json::parse(to_text(line))));
  EXPECT_EQ(again, line);
}

TEST(Record, HasTheFieldsOfTheSchema) {
  const json line = to_line(full_record());
  EXPECT_EQ(line["schema"], 1);
  EXPECT_EQ(line["record"], "result");
  EXPECT_EQ(line["case"], "attention lq=64 d=128 seed=7");
  EXPECT_EQ(line["pass"], "backward");
  EXPECT_EQ(line["safety"]["backward_d_above_64_sm_below_8"], true);
  EXPECT_EQ(line["errors"]["dq"]["gates"]["z"]["limit"], 7.25);
  EXPECT_EQ(line["errors"]["dq"]["worst"], json({3, 2, 1, 0}));
  EXPECT_EQ(line["errors"]["dq"]["failure"]["pattern"]["text"], "the last token of sequence 1");
  EXPECT_EQ(line["errors"]["dq"]["failure"]["map"]["cells"], json::parse("[[0.0, 100.0], [7.0, -1.0]]"));
  EXPECT_EQ(line["time"]["windows"]["op"]["median_us"], 12.5);
  EXPECT_EQ(line["time"]["windows"]["op"]["calls_per_sample"], 4);
  EXPECT_EQ(line["time"]["windows"]["op"]["gpu"]["throttle"], json({"sw_power_cap"}));
  EXPECT_EQ(line["time"]["windows"]["op"]["gpu"]["sm_mhz_rounds"][0][1], "nan");
  EXPECT_EQ(line["other_regimes"][0]["regime"], "sustained");
  EXPECT_TRUE(line["other_regimes"][0]["windows"]["op"]["gpu"]["power_w"].is_null()) << "no reading is no zero";
  EXPECT_EQ(line["memory"]["peak_bytes"], 1);
  EXPECT_EQ(line["invariance"][0], json::parse(R"({"relation":"repeats","tensor":"dk","outcome":"equal","promised":true,
    "compared":1000,"elements":4096})"));
  EXPECT_EQ(line["invariance"][1]["first"], json({0, 1, 2, 3}));
  EXPECT_EQ(line["invariance"][1]["got"], "nan");
  EXPECT_EQ(line["invariance"][2]["reason"], "layout=padded: it takes packed");
}

TEST(Record, ThatNobodyAuditedHasNoSuchField) {
  Record record = full_record();
  record.invariance.clear();
  EXPECT_FALSE(to_line(record).contains("invariance"));
  EXPECT_TRUE(record_from(to_line(record)).invariance.empty());
}

TEST(Record, SaysWhatDiffersInWords) {
  const std::vector<Invariance> all = full_record().invariance;
  EXPECT_EQ(sentence_of(all[0]), "dk is equal");
  EXPECT_EQ(sentence_of(all[1]), "dq differs in 7 of 8192 elements, first at [0,1,2,3]: nan, was 0.25 (at most inf ulp)");
  EXPECT_EQ(sentence_of(all[2]), "dv was not compared: layout=padded: it takes packed");
}

TEST(Record, WritesNonFiniteNumbersAsTexts) {
  const json line = to_line(full_record());
  EXPECT_EQ(line["errors"]["dq"]["rel_l2"], "nan");
  EXPECT_EQ(line["errors"]["dq"]["max_z"], "inf");
  EXPECT_EQ(line["errors"]["dq"]["gates"]["bias"]["value"], "-inf");
  const Record again = record_from(line);
  EXPECT_TRUE(std::isnan(again.errors.at("dq").rel_l2));
  EXPECT_EQ(again.errors.at("dq").max_z, kInfinity);
}

TEST(Record, WritesNineDigits) {
  EXPECT_EQ(number_to_json(1.0 / 3).dump(), "0.333333333");
  EXPECT_EQ(number_to_json(1234567890123.0).get<double>(), 1234567890000.0);
  const float single = 0.1f;  // comes back as it was
  EXPECT_EQ(static_cast<float>(number_to_json(single).get<double>()), single);
}

TEST(Record, LeavesOutTheTimeOfWhatDidNotPass) {
  Record record = full_record();
  record.time.reset();
  EXPECT_THAT(why_not_a_record(to_line(record)), HasSubstr("result.other_regimes: a result without a time has no other"));
  record.other_regimes.clear();
  record.status = Status::failed;
  EXPECT_FALSE(to_line(record).contains("time"));
  EXPECT_FALSE(to_line(record).contains("other_regimes"));
  record.time = Timing{};
  EXPECT_THAT(why_not_a_record(to_line(record)), HasSubstr("a result that is failed has no time"));
}

/// Of a status that the rest of the line speaks against.
TEST(Record, AContradictionIsRefused) {
  Record record = full_record();
  EXPECT_EQ(why_not_a_record(to_line(record)), "it was read") << "a case that has to differ passes by a gate that fails";
  record.expect = Expect::equal;
  EXPECT_EQ(why_not_a_record(to_line(record)), "result.status: it says passed, and gate z of dq fails");
  record.errors["dq"].gates["z"].verdict = Gate::Verdict::pass;
  EXPECT_EQ(why_not_a_record(to_line(record)), "it was read");
  record.errors.clear();
  for (const Expect judged : {Expect::equal, Expect::must_differ}) {
    record.expect = judged;
    EXPECT_EQ(why_not_a_record(to_line(record)), "result.status: it says passed, and no tensor of it was judged");
  }
  record.expect = Expect::must_throw;
  EXPECT_EQ(why_not_a_record(to_line(record)), "it was read") << "what throws computes nothing";
}

TEST(Record, ReadsAWindowOfACpuAndOneThatDoesNotSayHowManyCallsASampleHas) {
  json line = to_line(full_record());
  json& window = line["time"]["windows"]["op"];
  window.erase("gpu");
  window.erase("calls_per_sample");
  const Record record = record_from(line);
  EXPECT_FALSE(record.time->windows.at("op").gpu);
  EXPECT_EQ(to_line(record), line);
}

TEST(Record, ReadsATensorOfAnOlderRunThatSaysLessOfItsFailure) {
  json line = to_line(full_record());
  line["errors"]["dq"].erase("failure");
  EXPECT_FALSE(record_from(line).errors.at("dq").failure);
  EXPECT_EQ(to_line(record_from(line)), line);
}

TEST(Record, ReadsTheOlderNamesOfTheSafetyRules) {
  for (const bool d_above_64 : {true, false}) {
    json line = to_line(full_record());
    line["safety"].erase("sm_below_8");
    line["safety"].erase("backward_d_above_64_sm_below_8");
    EXPECT_THAT(why_not_a_record(line), HasSubstr("safety.sm_below_8: the field is missing"));
    line["safety"]["seed_rule"] = !d_above_64;
    line["safety"]["mission_rule"] = d_above_64;
    const Safety safety = record_from(line).safety;
    EXPECT_EQ(safety.sm_below_8, !d_above_64);
    EXPECT_EQ(safety.backward_d_above_64_sm_below_8, d_above_64);
  }
}

TEST(Record, NamesTheFieldThatIsWrong) {
  const json line = to_line(full_record());
  const auto with = [&](const char* pointer, json value) {
    json changed = line;
    changed[json::json_pointer(pointer)] = std::move(value);
    return why_not_a_record(changed);
  };
  EXPECT_THAT(with("/schema", 2), HasSubstr("result.schema: expected 1, got 2"));
  EXPECT_THAT(with("/record", "run"), HasSubstr("expected \"result\", got \"run\""));
  EXPECT_THAT(with("/status", "fine"), HasSubstr("result.status: expected one of passed, failed"));
  EXPECT_THAT(with("/pass", 1), HasSubstr("result.pass: expected a text, got 1"));
  EXPECT_THAT(with("/sm", 1e300), HasSubstr("result.sm: expected a whole number"));
  EXPECT_THAT(with("/errors/dq/max_abs", "much"), HasSubstr("result.errors.dq.max_abs: expected a number, got \"much\""));
  EXPECT_THAT(with("/errors/dq/worst", {1, 2}), HasSubstr("result.errors.dq.worst: expected 4 numbers, got 2"));
  EXPECT_THAT(with("/errors/dq/failure/map/cells", {1}), HasSubstr("failure.map.cells: expected arrays of numbers"));
  EXPECT_THAT(with("/errors/dq/failure/map/tokens_per_column", 0), HasSubstr("a cell holds at least one"));
  EXPECT_THAT(with("/errors/dq/failure/pattern", 1), HasSubstr("failure.pattern: expected an object"));
  EXPECT_THAT(with("/errors/dq/gates/z/verdict", "ok"), HasSubstr("verdict: expected one of pass, fail, no_power"));
  EXPECT_THAT(with("/time/windows/op/ci95_us", {1}), HasSubstr("ci95_us: expected 2 numbers, got 1"));
  EXPECT_THAT(
      with("/invariance/0/relation", "packed"),
      HasSubstr("result.invariance.relation: expected one of repeats, alone, order, packing, concurrency, got \"packed\""));
  EXPECT_THAT(with("/invariance/1/first", {1, 2}), HasSubstr("result.invariance.first: expected 4 numbers, got 2"));
  EXPECT_THAT(with("/time/windows/op/rounds", {1}), HasSubstr("rounds: expected arrays"));
  EXPECT_THAT(with("/time/windows/op/gpu/throttle", {1}), HasSubstr("throttle: expected an array of texts"));
  EXPECT_THAT(with("/other_regimes", "none"), HasSubstr("result.other_regimes: expected an array"));
  EXPECT_THAT(with("/safety/verdict", "maybe"), HasSubstr("expected ok, refused or silently_unsafe"));
  EXPECT_THAT(why_not_a_record(json::array()), HasSubstr("expected an object"));
}

TEST(Record, OfAnOlderVersionIsOfNoSuiteInParticular) {
  json line = to_line(full_record());
  EXPECT_EQ(record_from(line).case_suite, "parity");
  line.erase("case_suite");
  EXPECT_EQ(record_from(line).case_suite, "");
  EXPECT_FALSE(to_line(record_from(line)).contains("case_suite"));
}

TEST(Record, MissesEveryFieldThatIsTakenAway) {
  const json line = to_line(full_record());
  for (const auto& [key, value] : line.items()) {
    if (key == "time" || key == "other_regimes" || key == "memory") continue;    // absent where nothing was measured
    if (key == "invariance" || key == "spent" || key == "case_suite") continue;  // or by older versions
    if (key == "attention" || key == "choice") continue;                         // or where there is no layer
    json less = line;
    less.erase(key);
    EXPECT_THAT(why_not_a_record(less), HasSubstr("." + key + ": the field is missing"));
  }
  for (size_t entry = 0; entry < 3; ++entry)
    for (const auto& [key, value] : line["invariance"][entry].items()) {
      json less = line;
      less["invariance"][entry].erase(key);
      EXPECT_THAT(why_not_a_record(less), HasSubstr("invariance." + key + ": the field is missing"));
    }
}

TEST(Comparison, ComesBackAsItWasWritten) {
  const Comparison comparison{"run", "smoke", "attention lq=1 d=64", Pass::backward, {{"eager", "eigen", "dq", kNan, 0.5}}};
  const json line = to_line(comparison);
  EXPECT_EQ(line["differences"][0]["max_abs"], "nan");
  EXPECT_EQ(to_line(comparison_from(line)), line);
}

TEST(RunHeader, ComesBackAsItWasWritten) {
  const RunHeader header{"run", {"attnbench", "--suite", "smoke"}, "2025-01-02T03:04:05Z", {{"threads", 2}}};
  const json line = to_line(header);
  EXPECT_EQ(line["record"], "run");
  EXPECT_EQ(to_line(run_header_from(line)), line);
}

TEST(ParseJson, RefusesWhatIsNestedTooDeep) {
  const auto nested = [](int depth) {
    return std::string(static_cast<size_t>(depth), '[') + std::string(static_cast<size_t>(depth), ']');
  };
  EXPECT_EQ(to_text(parse_json(nested(kDeepest))), nested(kDeepest));
  EXPECT_THROW(parse_json(nested(kDeepest + 1)), std::runtime_error);
  EXPECT_THROW(parse_json("{\"a\":" + nested(200'000) + "}"), std::runtime_error);  // whose copy overflows the stack
  EXPECT_EQ(parse_json("\"\\\"" + nested(200) + "\"").get<std::string>(), "\"" + nested(200));
  EXPECT_THROW(parse_json("{\"a\":"), std::runtime_error);
}

TEST(ToText, SurvivesBytesThatAreNotUtf8) {
  EXPECT_EQ(to_text(json("a\xff")), "\"a\xEF\xBF\xBD\"");
}

}  // namespace
}  // namespace attnbench
