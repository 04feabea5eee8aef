// Signatures of failures, and the book of those that are known.
#include "harness/run/signature_book.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/data_files.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/json_reader.hpp"

namespace attnbench {
namespace {

using testing::HasSubstr;

/// A forward in which `tensor` failed with this slope of the error, its bad elements in this kind of tokens.
Record failed(const std::string& backend, const std::string& case_line, const std::string& tensor, double gain,
              const std::string& tokens = "last") {
  Record record;
  record.backend = backend;
  record.case_line = case_line;
  record.status = Status::failed;
  TensorErrors errors;
  errors.max_z = 65;
  errors.rel_l2 = 0.01;
  errors.elements = 1000;
  errors.bad = 10;
  errors.gates["z"] = {65, 6.5, 1000, Gate::Verdict::fail};
  errors.gates["rms"] = {1, 2, 1000, Gate::Verdict::pass};
  errors.failure.emplace();
  errors.failure->gain = gain;
  errors.failure->rms_ratio = 16;
  errors.failure->zeros = 5;
  errors.failure->pattern = {"all", tokens, "all", "all", "a part", 10, 20, 10, 100};
  record.errors[tensor] = errors;
  record.errors["passed"] = {};
  return record;
}

const char* const kLine = "attention d=64 lq=64";

TEST(Signature, HoldsWhatFailedInUnitsThatCasesShare) {
  const Signature s = failure_signature(failed("x", kLine, "o", -1)).value();
  ASSERT_EQ(s.tensors.size(), 1u);
  const auto& f = s.tensors.at("o").features;
  EXPECT_EQ(f.at("gate z"), 1);
  EXPECT_EQ(f.count("gate rms"), 0u) << "it passed";
  EXPECT_DOUBLE_EQ(f.at("z"), std::round(1000 * std::log2(10) / 16) / 1000);
  EXPECT_EQ(f.at("rms"), 0.25);
  EXPECT_EQ(f.at("zeros"), 0.5);
  EXPECT_EQ(f.at("rows"), 0.1);
  EXPECT_EQ(f.at("density"), 0.1);
  EXPECT_EQ(f.at("gain"), -1);
  EXPECT_LT(f.at("sign"), 0);
  EXPECT_EQ(s.tensors.at("o").where[1], "last");
}

TEST(Signature, TakesGradientsAsTheyAreJudged) {
  Record record = failed("x", kLine, "dq_given_o", -1);
  record.errors["dq"] = failed("x", kLine, "dq", 0.5).errors["dq"];
  EXPECT_EQ(failure_signature(record)->tensors.at("dq").features.at("gain"), -1);
  record.errors.erase("dq_given_o");
  EXPECT_EQ(failure_signature(record)->tensors.at("dq").features.at("gain"), 0.5);
}

TEST(Signature, IsNoneWhereNoTensorSaysHowItFailed) {
  Record record = failed("x", kLine, "o", 1);
  record.errors["o"].failure.reset();
  EXPECT_FALSE(failure_signature(record));
}

TEST(Signature, NumbersThatAreNoneAreNoFeatures) {
  Record record = failed("x", kLine, "o", NAN);
  record.errors["o"].max_z = NAN;
  record.errors["o"].rel_l2 = NAN;
  const Signature s = failure_signature(record).value();
  EXPECT_EQ(distance(s, s), 0);
  for (const auto& [name, value] : s.tensors.at("o").features) EXPECT_TRUE(std::isfinite(value)) << name;
}

TEST(Signature, DistanceIsZeroForItselfAndTheSameBothWays) {
  const Signature a = *failure_signature(failed("x", kLine, "o", -1)), b = *failure_signature(failed("x", kLine, "o", 0.5)),
                  c = *failure_signature(failed("x", kLine, "lse", -1)),
                  d = *failure_signature(failed("x", "attention d=64 lq=64 mask=causal", "o", -1));
  EXPECT_EQ(distance(a, a), 0);
  EXPECT_EQ(distance(a, b), distance(b, a));
  EXPECT_GT(distance(a, b), 2) << "another slope";
  EXPECT_GT(distance(a, c), distance(a, b)) << "other tensors";
  EXPECT_NEAR(distance(a, d), 0.3, 1e-9) << "another mask";
  EXPECT_GT(distance(a, *failure_signature(failed("x", kLine, "o", -1, "tail"))), 0.5) << "another part";
}

RunData selftest_run() {
  RunData run;
  const auto declare = [&](const char* name, const char* version) {
    Declaration declaration;
    declaration.name = name;
    declaration.version = version;
    run.backends["cpu"].push_back(declaration);
  };
  declare("x:o_zero", "1.0, planted: O is 0");
  declare("x:o_twice", "1.0, planted: O is twice as large");
  declare("x:untold", "1.0");
  for (const char* line : {"attention d=64 lq=64", "attention d=64 lq=65", "attention d=64 lq=64 dtype=fp16"}) {
    run.records.push_back(failed("x:o_zero", line, "o", -1));
    run.records.push_back(failed("x:o_twice", line, "o", 1));
    run.records.push_back(failed("x:untold", line, "o", 0.6));  // nobody could say what it is
    run.records.push_back(failed("x", line, "o", 0.3));         // not planted
  }
  return run;
}

TEST(SignatureBook, NamesTheNearestDefectFirst) {
  const SignatureBook all = collect_signatures(selftest_run());
  EXPECT_EQ(all.signatures.size(), 6u);
  const SignatureBook book = condense(all);
  EXPECT_EQ(book.signatures.size(), 2u) << "those of a defect are near one another";
  const auto order = resemblances(book, *failure_signature(failed("y", "attention d=32 lq=5", "o", -0.9)));
  ASSERT_EQ(order.size(), 2u);
  EXPECT_EQ(order[0].defect, "o_zero");
  EXPECT_LT(order[0].distance, order[1].distance);
  Record backward = failed("y", kLine, "o", -0.9);
  backward.pass = Pass::backward;
  EXPECT_TRUE(resemblances(book, *failure_signature(backward)).empty()) << "it knows no backward";
}

TEST(SignatureBook, ComesBackAsItWasWritten) {
  const SignatureBook all = collect_signatures(selftest_run()), book = condense(all);
  const std::filesystem::path file = testing::TempDir() + "signatures.json";
  const std::string text = to_text(book, leave_one_line_out(all));
  std::ofstream(file) << text;
  const SignatureBook again = read_signatures(file);
  EXPECT_EQ(to_text(again, leave_one_line_out(all)), text);
  EXPECT_EQ(again.defects.at("o_zero"), "O is 0");
  std::ofstream(file)
      << R"({"defects":{},"signatures":[{"defect":"x","pass":"sideways","case":"attention d=1 lq=1","tensors":{}}]})";
  try {
    read_signatures(file);
    ADD_FAILURE() << "it was read";
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("signatures[0].pass: expected one of forward, backward"));
  }
  std::filesystem::remove(file);
  EXPECT_THROW(read_signatures(file), UsageError);
}

TEST(SignatureBook, IsScoredOnLinesThatItHasNotSeen) {
  RunData run = selftest_run();
  run.records.push_back(failed("x:on_one_line", "attention d=64 lq=66", "o", 0));
  const BookScore score = leave_one_line_out(collect_signatures(run));
  EXPECT_EQ(score.signatures, 6) << "what only one line shows cannot be told from another";
  EXPECT_EQ(score.first, 6);
  EXPECT_EQ(score.among_three, 6);
  EXPECT_EQ(score.unknown, 0);
  EXPECT_EQ(score.mistaken, 0) << "O that is twice as large is not 0, and no book says so where it does not know the one";
  RunData confused = selftest_run();
  for (Record& record : confused.records)  // the two change places on one line
    if (record.case_line == "attention d=64 lq=65") record.errors["o"].failure->gain *= -1;
  const BookScore wrong = leave_one_line_out(collect_signatures(confused));
  EXPECT_EQ(wrong.signatures, 6);
  EXPECT_EQ(wrong.first, 0);
  EXPECT_EQ(wrong.among_three, 6);
}

TEST(SignatureBook, WhatIsFarIsAlikeOnlyWhereItIsAlone) {
  const auto alike = [](std::vector<double> distances) {
    std::vector<Resemblance> order;
    for (const double distance : distances) order.push_back({"x", distance});
    return is_alike(order);
  };
  EXPECT_TRUE(alike({2, 2}));
  EXPECT_FALSE(alike({2.1, 2.1}));
  EXPECT_FALSE(alike({2.1, 4}));
  EXPECT_TRUE(alike({2.1, 4.2}));
  EXPECT_TRUE(alike({4}));
  EXPECT_FALSE(alike({4.1, 9}));
  EXPECT_FALSE(alike({}));
}

/// O that is nearly 0, of which a book that knows only O that is 0 says that it is 0.
TEST(SignatureBook, IsScoredOnMistakesThatItDoesNotKnow) {
  RunData run = selftest_run();
  run.backends["cpu"].push_back(run.backends["cpu"].front());
  run.backends["cpu"].back().name = "x:o_almost_zero";
  for (const char* line : {"attention d=64 lq=64", "attention d=64 lq=65"})
    run.records.push_back(failed("x:o_almost_zero", line, "o", -0.95));
  EXPECT_EQ(leave_one_line_out(collect_signatures(run)).mistaken, 5) << "two for O that is 0, three the other way round";
}

/// The book that ships, by its own signatures: each against those of other lines. cases/README.md publishes the score over all
/// records of the matrix, which is higher: what is near another is not in the book.
TEST(SignatureBook, ThatShipsNamesMostDefectsOnLinesThatItHasNotSeen) {
  const SignatureBook book = read_signatures("");
  EXPECT_GT(book.defects.size(), 65u);
  for (const auto& [name, what] : book.defects) EXPECT_FALSE(what.empty()) << name;
  const BookScore score = leave_one_line_out(book);
  EXPECT_GT(score.signatures, 500);
  EXPECT_GT(double(score.first) / double(score.signatures), 0.55);
  EXPECT_GT(double(score.among_three) / double(score.signatures), 0.75);
  EXPECT_LT(double(score.mistaken) / double(score.signatures), 0.2);
}

}  // namespace
}  // namespace attnbench
