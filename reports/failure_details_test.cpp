// What a reader is told of a failure, on records made by hand.
#include "reports/failure_details.hpp"

#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "reports/findings.hpp"
#include "reports/text_table.hpp"

namespace attnbench {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::StartsWith;

TensorErrors wrong_rows() {
  TensorErrors e;
  e.max_abs = 0.25;
  e.rel_l2 = 0.001;
  e.cosine = 0.9999;
  e.elements = 8192;
  e.bad = 128;
  e.first_bad = Element{0, 1, 63, 0};
  e.worst = Element{0, 3, 127, 5};
  e.worst_got = 0.5;
  e.worst_expected = 0.25;
  e.gates = {{"z", {62.5, 6.5, 8192, Gate::Verdict::fail}}, {"bias", {0.001, 0.01, 8192, Gate::Verdict::pass}}};
  e.failure = TensorFailure{0, 1, 40, 64, 2, 8.5, -0.002, 1, 2, 0.004, 0.01, 64, 0, 0, {}, {}};
  e.failure->pattern = {"all", "last_of_tile", "all", "all", "the last query of each tile of 64", 128, 256, 4, 128};
  e.failure->map = {"percent_bad", 1, 1, 16, {{0, 0, 0, 13, -1}, {0, 25, 50, 75, 100}}};
  return e;
}

Record failed_record() {
  Record r;
  r.case_line = "attention hq=2 lens=64+80 d=32";
  r.backend = "mine";
  r.status = Status::failed;
  r.reason = "o: gate z is 62.5, its limit 6.5";
  r.repro = "attnbench --case it";
  r.errors["o"] = wrong_rows();
  r.errors["lse"] = {};
  return r;
}

TEST(ElementPlace, OfAWeightIsARowAndAColumn) {
  EXPECT_EQ(element_place("dq", {1, 0, 31, 2}), "sequence 1, head 0, token 31, channel 2");
  EXPECT_EQ(element_place("out", {0, 0, 31, 2}, " "), "sequence 0 head 0 token 31 channel 2");
  EXPECT_EQ(element_place("dwq", {0, 0, 105, 27}), "row 105, column 27");
  EXPECT_EQ(element_place("dnorm_instead", {0, 0, 0, 27}), "row 0, column 27");
  EXPECT_EQ(element_place("dlora_qb", {0, 0, 105, 7}), "row 105, column 7");
  EXPECT_EQ(element_place("dlora_qa", {0, 0, 105, 7}), "row 7, column 105") << "judged by its columns";
}

TEST(FailureDetails, TellHowMuchWhereAndTheMap) {
  const std::vector<std::string> lines = failure_details(failed_record(), true);
  ASSERT_EQ(lines.size(), 10u);
  EXPECT_THAT(lines[0], StartsWith("tensor  max abs   rel-L2   cosine  ulp p50   p99  p99.9   max  max|z| / limit"));
  EXPECT_THAT(lines[2], AllOf(StartsWith("o "), HasSubstr("62.5 / 6.50"), HasSubstr("8.50"), HasSubstr("-0.00200"),
                              HasSubstr("128  8192  z")));
  EXPECT_EQ(lines[3], "worst  o [sequence 0, head 3, token 127, channel 5] got 0.5, expected 0.25, sigma 0.0100");
  EXPECT_EQ(lines[4], "first  o [sequence 0, head 1, token 63, channel 0] got 1, expected 2, sigma 0.00400");
  EXPECT_EQ(lines[5],
            "where  o: the last query of each tile of 64: explains 128 of 128 bad elements (64 zero); 128 of its 256 are bad");
  EXPECT_EQ(
      lines[6],
      "map    o: a column is 16 queries of each sequence; bad elements: · none ░ ▒ ▓ █ up to a quarter, half, 3/4, all of a "
      "cell");
  EXPECT_EQ(lines[7], "       sequence 0  head 0  ···░ ");
  EXPECT_EQ(lines[8], "       sequence 0  head 1  ·░▒▓█");
  EXPECT_THAT(lines[9], StartsWith("likely "));
  EXPECT_EQ(failure_details(failed_record(), false).size(), 7u);
}

TEST(FailureDetails, StandInAFindingBetweenTheReasonAndTheRepro) {
  const std::vector<std::string> lines = details(failed_record(), true);
  EXPECT_EQ(lines.front(), "case   attention hq=2 lens=64+80 d=32");
  EXPECT_THAT(lines[2], StartsWith("tensor"));
  EXPECT_EQ(lines.back(), "repro  attnbench --case it");
}

TEST(FailureDetails, OfAnOldRecordAreNone) {
  Record old = failed_record();
  old.errors["o"].failure.reset();
  EXPECT_FALSE(has_failure_details(old));
  EXPECT_EQ(likely_mistake(old, {}), "");
  EXPECT_THAT(details(old, true), Contains("gate   o: z is 62.5, limit 6.50 (n 8192)"));
}

TEST(FailureDetails, StayShortHoweverMuchFailed) {
  Record r = failed_record();
  for (const char* tensor : {"dq", "dq_given_o", "dk", "dk_given_o", "dv"}) r.errors[tensor] = wrong_rows();
  r.errors["o"].bad = 1;
  r.errors["o"].failure->map.cells.assign(16, std::vector<double>(32, 100));
  const std::vector<std::string> lines = failure_details(r, true);
  EXPECT_LE(lines.size(), 22u);
  for (const std::string& line : lines) EXPECT_LT(display_width(line), 140u) << line;
  EXPECT_THAT(lines, Contains("       and 1 more"));
  EXPECT_THAT(lines, Contains("       and 10 more rows"));
  EXPECT_EQ(std::ranges::count_if(lines, [](const std::string& line) { return line.starts_with("dq"); }), 1)
      << "a gradient given O stands for its twin";
}

TEST(FailureDetails, SayWhenThereIsNoPatternOrNoElement) {
  Record r = failed_record();
  r.errors["o"].failure->pattern = {};
  r.errors["o"].failure->pattern.rows_hit = 30;
  r.errors["o"].failure->pattern.rows = 256;
  EXPECT_THAT(failure_details(r, false), Contains("where  o: no pattern: 128 of 8192 elements (64 zero), in 30 of 256 rows"));
  r.errors["o"].failure->pattern = {"all", "all", "all", "all", "nearly every element", 128, 8192, 256, 256};
  EXPECT_THAT(failure_details(r, false), Contains("where  o: nearly every element: 128 of 8192 (64 zero)"));
  r.errors["o"].failure->pattern.rows_hit = 0;
  EXPECT_THAT(failure_details(r, false), Contains("where  o: in padded rows alone"));
  r.errors["o"].bad = 0;
  r.errors["o"].failure->map = {"rms_z", 1, 2, 16, {{1, 4}}};
  const auto lines = failure_details(r, true);
  EXPECT_THAT(lines, Contains("where  o: no element alone is bad: small errors in many"));
  EXPECT_THAT(lines, Contains(HasSubstr("RMS(z): · none ░ ▒ ▓ █ up to a quarter, half, 3/4, all of the largest cell, 4.00")));
  EXPECT_THAT(lines, Contains("       sequence 0  head 0..1    ░█"));
}

TEST(LikelyMistake, NamesTheNearestAndThoseAsNearOrNone) {
  const Record record = failed_record();
  SignatureBook book{{{"rows_lost", "the last rows of tiles are lost"}}, {{"rows_lost", *failure_signature(record)}}};
  EXPECT_EQ(likely_mistake(record, book), "likely rows_lost: the last rows of tiles are lost (distance 0.0)");
  Record like = record;
  like.errors["o"].failure->gain = -0.004;
  book.signatures.push_back({"rows_doubled", *failure_signature(like)});
  Record unlike = record;
  unlike.errors["o"].failure->gain = -1;
  book.signatures.push_back({"rows_zero", *failure_signature(unlike)});
  EXPECT_EQ(likely_mistake(record, book),
            "likely rows_lost: the last rows of tiles are lost (distance 0.0); as near: rows_doubled");
  Record foreign = record;
  foreign.errors["lse"] = foreign.errors["o"];
  foreign.errors["o"].failure->nans = 128;
  foreign.errors["o"].failure->pattern.text = "";
  EXPECT_THAT(likely_mistake(foreign, book), StartsWith("likely unlike any known defect (the nearest is "));
  EXPECT_THAT(likely_mistake(record, {}), HasSubstr("there is no list of known defects"));
}

}  // namespace
}  // namespace attnbench
