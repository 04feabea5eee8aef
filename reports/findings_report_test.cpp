// Red results by backend and cause, and the table of what to do about them.
#include "reports/findings_report.hpp"
#include "harness/run/suite.hpp"

#include <set>

#include <gtest/gtest.h>

#include "harness/run/suite.hpp"
#include "reports/advice.hpp"
#include "reports/test_run.hpp"

namespace attnbench {
namespace {

Record red(const std::string& backend, const std::string& case_line, const std::string& tensor, const std::string& device) {
  Record record;
  record.backend = backend;
  record.device = device;
  record.case_line = case_line;
  record.status = Status::failed;
  record.reason = tensor + ": gate z is 30, its limit 6.9";
  record.errors[tensor].gates["z"] = {30, 6.9, 100, Gate::Verdict::fail};
  record.repro = "attnbench --case \"" + case_line + "\" --backend " + backend;
  return record;
}

TEST(Advice, EveryRowIsASentenceAndSourcesAreLinks) {
  std::set<std::string> causes;
  for (const Advice& row : read_advice()) {
    EXPECT_EQ(row.advice.back(), '.') << row.cause;
    EXPECT_NE(row.cause.back(), '.') << row.cause;
    EXPECT_TRUE(row.source.empty() || row.source.starts_with("https://")) << row.source;
    EXPECT_FALSE(row.tells.empty()) << row.cause << ": it would speak of everything";
    causes.insert(row.cause);
  }
  EXPECT_GE(causes.size(), 10u);
}

TEST(Advice, SpeaksOfWhatFitsAllOfARow) {
  const std::vector<Advice> table{{{"a", "b"}, "cuda", "backward", "failed", {"dq", "mask=causal ", "!align"}, "c", "d.", ""}};
  Record record = red("b", "attention lq=4 d=8 mask=causal", "dq", "cuda:1");
  record.pass = Pass::backward;
  const auto spoken = [&] { return advice_on(record, signature_of(record), table) != nullptr; };
  EXPECT_TRUE(spoken());
  const Record fits = record;
  record.backend = "c";
  EXPECT_FALSE(spoken());
  record = fits, record.device = "cpu";
  EXPECT_FALSE(spoken());
  record = fits, record.pass = Pass::forward;
  EXPECT_FALSE(spoken());
  record = fits, record.status = Status::error;
  EXPECT_FALSE(spoken());
  record = fits, record.case_line = "attention lq=4 lk=5 d=8 mask=causal align=top_left";
  EXPECT_FALSE(spoken());
  record = fits, record.case_line = "attention lq=4 d=8";
  EXPECT_FALSE(spoken());
  record = red("b", "attention lq=4 d=8 mask=causal", "dk", "cuda:1"), record.pass = Pass::backward;
  EXPECT_FALSE(spoken());
}

/// What a layer gives where the case does not say that it has to differ, or throw.
Record red_without_terms(const SuiteCase& line, const std::string& layer) {
  const Metadata& expected = line.c.metadata;
  const Semantics instead = expected.instead.value_or(Semantics{});
  Record record = red(layer, format_case(line.c), "out", "cpu");
  if (expected.expect == Expect::must_throw || instead.runs || !instead.weights) record.errors.clear();
  if (expected.expect == Expect::must_throw) record.status = Status::error, record.reason = expected.message;
  if (instead.runs) record.reason = "original ran, expected patched";
  if (!instead.weights) record.reason = "weights is missing from the outputs";
  if (instead.fp16_overflow) record.errors["out"].gates["nonfinite"] = {1, 0, 100, Gate::Verdict::fail};
  return record;
}

TEST(Advice, KnowsEveryTrapOfTheSuiteOfLayers) {
  const std::vector<Advice> table = read_advice();
  int traps = 0;
  for (const SuiteCase& line : load_suite("llama").cases) {
    if (line.c.metadata.expect == Expect::equal) continue;
    for (const std::string& layer : line.c.metadata.backends) {
      const Record record = red_without_terms(line, layer);
      const Advice* advice = advice_on(record, signature_of(record), table);
      EXPECT_TRUE(advice) << layer << ": " << record.case_line << ": " << record.reason;
      ++traps;
    }
  }
  EXPECT_GE(traps, 100);
  Record left_padding = red("internvl_sdpa", "llama hq=2 d=64 s=24 lens=17+9 pad=left", "out", "cpu");
  EXPECT_TRUE(advice_on(left_padding, "out", table)->cause.starts_with("in training it looks at no mask"));
  left_padding.case_line += " train=off";
  EXPECT_FALSE(advice_on(left_padding, "out", table)) << "there it adds the mask";
}

RunData run_with(std::vector<Record> records) {
  RunData run;
  run.records = std::move(records);
  run.gated = {"mine"};
  return run;
}

TEST(FindingsReport, PutsOneCauseOfOneBackendTogether) {
  const RunData run =
      run_with({red("torch_efficient_varlen", "attention hq=2 d=64 lq=190 lk=65 mask=causal", "o", "cuda:0"),
                red("torch_efficient_varlen", "attention d=64 lq=130 lk=1 mask=causal", "lse", "cuda:0"),
                red("mine", "attention d=64 lq=7", "o", "cuda:0"), red("mine", "attention d=64 lq=3", "o", "cuda:0"),
                red("mine", "attention d=64 lq=3", "lse", "cuda:0")});
  const std::vector<Cause> causes = causes_of(run);
  ASSERT_EQ(causes.size(), 3u);
  EXPECT_EQ(causes[0].first().backend, "mine") << "failures of gated backends come first";
  EXPECT_EQ(causes[0].text, "forward failed: o");
  EXPECT_EQ(causes[0].advice, "");
  EXPECT_EQ(causes[0].smallest->case_line, "attention d=64 lq=3");
  EXPECT_EQ(causes[2].findings.size(), 2u) << "by what is known they have one cause";
  EXPECT_NE(causes[2].advice, "");
  EXPECT_EQ(causes[2].smallest->case_line, "attention d=64 lq=130 lk=1 mask=causal");

  const std::string text = findings_markdown(run);
  EXPECT_TRUE(contains(text, "5 red results"));
  EXPECT_TRUE(contains(text, causes[2].advice));
  EXPECT_TRUE(contains(text, "**What to do:** unexplained"));
  for (const Cause& cause : causes) EXPECT_TRUE(contains(text, cause.smallest->repro));
  EXPECT_LT(text.find("## Failures"), text.find("## Findings"));
}

TEST(FindingsReport, ShowsWhatWasShrunkInPlaceOfTheSmallest) {
  const Record found = red("mine", "attention hq=4 d=64 lq=100", "o", "cpu"),
               small = red("mine", "attention d=1 lq=2", "o", "cpu");
  const RunData run = run_with({found});
  EXPECT_FALSE(contains(findings_markdown(run), small.repro));
  const std::string text = findings_markdown(run, {{found, small, 17, true}});
  EXPECT_TRUE(contains(text, "Shrunk, in 17 tries, to:"));
  EXPECT_TRUE(contains(text, small.repro));
  EXPECT_TRUE(contains(text, "from the smallest of the run: `attention hq=4 d=64 lq=100`"));
  EXPECT_TRUE(contains(findings_markdown(run, {{found, found, 1, false}}), "not red when it was run again alone"));
}

TEST(FindingsReport, OfARunWithoutAnySaysSo) {
  EXPECT_TRUE(contains(findings_markdown(run_with({})), "no result is red"));
}

}  // namespace
}  // namespace attnbench
