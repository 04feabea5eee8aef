// Each writer on a run made by hand (test_run.hpp says what is in it).

#include <gtest/gtest.h>

#include "reports/case_labels.hpp"
#include "reports/console_table.hpp"
#include "reports/difference_tables.hpp"
#include "reports/finding_groups.hpp"
#include "reports/summary.hpp"
#include "reports/test_run.hpp"
#include "reports/timing_tables.hpp"
#include "reports/verdict_tables.hpp"
#include "reports/write_reports.hpp"

namespace attnbench {
namespace {

TEST(Findings, TheGatedOnesComeFirst) {
  const RunData run = test_run();
  const auto findings = findings_of(run);
  ASSERT_EQ(findings.size(), 2u);
  EXPECT_TRUE(findings[0].gated);
  EXPECT_EQ(findings[0].record->backend, "flash_varlen");
  EXPECT_EQ(status_word(findings[0].record->status), "FAILED");
  EXPECT_FALSE(findings[1].gated);
  EXPECT_EQ(status_word(findings[1].record->status), "ERROR");
}

TEST(Findings, SayWhatWhereAndHowToReproduce) {
  const RunData run = test_run();
  const auto lines = details(*findings_of(run)[0].record, true);
  EXPECT_EQ(lines, (Words{"case   attention b=2 hq=4 lq=128 d=128 mask=causal layout=padded",
                          "why    dq: z is 12.3, limit 7.31 at [0, 3, 17, 5]", "gate   dq: z is 12.3, limit 7.31 (n 8192)",
                          "worst  dq [sequence 0, head 3, token 17, channel 5] got inf, expected -0.5",
                          "first  dq [sequence 0, head 3, token 16, channel 0]", "count  dq: 17 of 8192 elements bad",
                          "repro  " + kRepro}));
}

TEST(Findings, AReasonOfSeveralLinesIsIndented) {
  const RunData run = test_run();
  const auto lines = details(*findings_of(run)[1].record, true);
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[2], "       last words");
}

TEST(Findings, AMistrustedRecordShowsTheGatesWithoutPower) {
  RunData run = test_run();
  run.records[0].status = Status::mistrusted;
  EXPECT_EQ(details(run.records[0], true).at(1), "gate   o: bias has no power: 0.500, limit 0.100 (n 12)");
}

TEST(Findings, UnsupportedInsideTheDeclarationIsRed) {
  RunData run = test_run();
  run.backends["cpu"][0].capabilities.softcap = true;
  EXPECT_EQ(findings_of(run).size(), 3u);
}

TEST(FindingGroups, WhatIsAlikeIsToldOnceByItsSmallestCase) {
  RunData run = test_run();
  Record larger = run.records[4];
  larger.case_line = "attention b=2 hq=4 lq=256 d=128 dtype=fp16 mask=causal layout=padded";
  larger.repro = "the larger one";
  larger.errors["dq"].gates["z"].value = 99;
  Record other = run.records[4];
  other.errors["dk"] = other.errors["dq"];
  run.records.insert(run.records.begin() + 4, larger);
  run.records.push_back(other);
  const std::vector<FindingGroup> groups = group_findings(findings_of(run));
  ASSERT_EQ(groups.size(), 3u);
  EXPECT_EQ(headline(groups[0]), "FAILED flash_varlen backward: dq (2 cases, bf16 fp16)");
  EXPECT_EQ(headline(groups[1]), "FAILED flash_varlen backward: dk, dq (1 case, bf16)");
  EXPECT_EQ(headline(groups[2]), "ERROR eager forward: worker died, signal # while in stage \"judge\" (1 case, bf16)");
  EXPECT_EQ(groups[0].smallest->repro, kRepro);
  const Words lines = details(groups[0], true);
  EXPECT_EQ(lines.front(), "alike  2 cases; the smallest:");
  EXPECT_EQ(lines[lines.size() - 2], "the furthest off: z of dq is 99.0, limit 7.31");
  EXPECT_EQ(lines.back(), "repro  the larger one");
  EXPECT_EQ(details(groups[2], true), details(*groups[2].smallest, true));
}

TEST(Labels, CommonWordsGoToTheTitle) {
  const auto labels = label_cases({"attention lq=8 d=64", "attention lq=8 d=64 dtype=fp16 mask=causal"});
  EXPECT_EQ(labels.common, "attention lq=8 d=64");
  EXPECT_EQ(labels.label.at("attention lq=8 d=64"), "dtype=bf16 mask=none");
  EXPECT_EQ(labels.label.at("attention lq=8 d=64 dtype=fp16 mask=causal"), "dtype=fp16 mask=causal");
  EXPECT_EQ(label_cases({"attention lq=8 d=64"}).label.at("attention lq=8 d=64"), "attention lq=8 d=64");
}

TEST(Verdicts, AreCounted) {
  const TextTable table = verdict_counts(test_run());
  ASSERT_EQ(table.rows.size(), 6u);
  EXPECT_EQ(texts(table.rows[0]), (Words{"flash_varlen", "forward", "bf16", "1", "1", "·", "·", "1", "·", "·"}));
  EXPECT_EQ(texts(table.rows[2]), (Words{"flash_varlen", "backward", "bf16", "1", "·", "1", "·", "·", "·", "·"}));
  EXPECT_EQ(texts(table.rows[3]), (Words{"eager", "forward", "bf16", "1", "1", "·", "·", "·", "·", "1"}));
}

TEST(Verdicts, SafetyAndTheFieldsRule) {
  EXPECT_EQ(safety_flags(test_run()),
            (Words{"flash_varlen backward on SM 7.5: a backward with a head dim above 64 on SM < 8; verdict "
                   "refused: backward needs SM 8.0 [https://example.org/safety] (1 record)"}));
  const TextTable rules = field_rule_counts(test_run());
  EXPECT_EQ(texts(rules.rows.at(0)), (Words{"flash_varlen", "2x_eager", "2", "·", "1", "·", "1"}));
  EXPECT_EQ(texts(rules.rows.at(1)), (Words{"eager", "2x_eager", "3", "·", "·", "·", "·"}));
  EXPECT_EQ(texts(no_power_counts(test_run()).rows.at(0)), (Words{"flash_varlen", "dq", "bias", "1", "1"}));
  EXPECT_EQ(texts(reason_counts(test_run()).rows.at(0)), (Words{"flash_varlen", "forward", "unsupported", "1", "no softcap"}));
}

TEST(Verdicts, WhatWasPickedForLayersIsSaidOnceForEachAnswer) {
  RunData run = test_run();
  EXPECT_EQ(layer_choices(run), Words{});
  EXPECT_FALSE(contains(console_report(run, {}), "Picked for layers"));
  run.records.at(0).choice = run.records.at(2).choice = "sdpa_math: it is safe";
  run.records.at(1).choice = "eager: it is safe";
  EXPECT_EQ(layer_choices(run), (Words{"sdpa_math: it is safe (2 records)", "eager: it is safe (1 record)"}));
  EXPECT_TRUE(contains(console_report(run, {}), "Picked for layers\n  sdpa_math: it is safe (2 records)"));
  EXPECT_TRUE(contains(summary_markdown(run), "## Picked for layers\n\n- sdpa_math: it is safe (2 records)"));
}

TEST(Times, AreGroupedAndUnconvergedOnesMarked) {
  const auto tables = time_tables(test_run());
  ASSERT_EQ(tables.size(), 2u);
  EXPECT_EQ(tables[0].title, "Median time in us, suite perf, forward (cpu_hot, cpu: Test CPU): attention b=2 hq=4 d=128");
  ASSERT_EQ(tables[0].rows.size(), 3u);
  EXPECT_EQ(texts(tables[0].rows[0]), (Words{"lq=128 dtype=bf16 mask=causal layout=padded", "101 ±0.5% ", "401 ±0.1%*"}));
  EXPECT_EQ(texts(tables[0].rows[1]), (Words{"  op+layout", "201 ±0.2% ", "·"}));
  EXPECT_EQ(tables[0].rows[0][1].tone, Tone::plain);  // its op+layout is the fair number, and eager has none
  EXPECT_EQ(tables[0].rows[2][2].tone, Tone::good);
  EXPECT_TRUE(contains(tables[0].note, "unconverged"));
  EXPECT_FALSE(contains(tables[1].note, "unconverged"));
}

TEST(Times, WithTheGapsOfTheHostAreMarked) {
  RunData run = test_run();
  EXPECT_FALSE(contains(time_tables(run).at(0).note, "h: the host"));
  for (Record& record : run.records)
    if (record.time) record.time->windows.at("op").gpu.emplace().samples_without_hold = record.backend == "eager" ? 3 : 0;
  const TextTable times = time_tables(run).at(0);
  EXPECT_TRUE(contains(times.note, "h: the host"));
  EXPECT_EQ(times.rows[0][1].text, "101 ±0.5% ");
  EXPECT_EQ(times.rows[0][2].text, "401 ±0.1%*h");
}

TEST(Times, ABackwardThroughAutogradStandsApart) {
  RunData run = test_run();
  Record own = run.records[5];
  run.records[5].time->windows = {{"autograd", own.time->windows.at("op")}};
  TextTable times = time_tables(run).at(1), rates = rate_tables(run).at(1);
  ASSERT_EQ(times.rows.size(), 1u);
  EXPECT_TRUE(times.rows[0][0].text.ends_with("  autograd")) << times.rows[0][0].text;
  EXPECT_TRUE(contains(rates.note, "or autograd"));
  own.backend = "flash_varlen";
  run.records.push_back(own);
  times = time_tables(run).at(1);
  ASSERT_EQ(times.rows.size(), 2u);
  EXPECT_TRUE(times.rows[0][0].text.ends_with("padded")) << "the operation itself first";
  EXPECT_EQ(times.rows[0][2].text, "·");
  EXPECT_EQ(times.rows[1][0].text, "  autograd");
  EXPECT_EQ(times.rows[1][1].text, "·");
}

TEST(Times, RatesAndMemory) {
  const auto rates = rate_tables(test_run());
  ASSERT_EQ(rates.size(), 2u);
  EXPECT_TRUE(rates[0].title.starts_with("GFLOP/s, suite perf, forward"));
  EXPECT_EQ(rates[0].rows[0][1].text, "250");
  const TextTable memory = memory_table(test_run());
  ASSERT_EQ(memory.rows.size(), 3u);
  EXPECT_EQ(memory.rows[0][2].text, "1.00 MiB");
}

TEST(Times, EveryRegimeHasItsOwnTables) {
  const RunData run = run_in_two_regimes();
  const auto tables = time_tables(run);
  ASSERT_EQ(tables.size(), 4u);  // forward cooled, sustained and cpu_hot, backward cpu_hot
  EXPECT_TRUE(contains(tables[0].title, "forward (cooled")) << tables[0].title;
  EXPECT_TRUE(contains(tables[1].title, "forward (sustained")) << tables[1].title;
  ASSERT_EQ(tables[0].rows.size(), 1u);
  ASSERT_EQ(tables[1].rows.size(), 2u);
  EXPECT_TRUE(contains(tables[1].rows[0][1].text, "111 ")) << tables[1].rows[0][1].text;
  EXPECT_EQ(tables[1].rows[1][0].text, "  op+layout");
  EXPECT_FALSE(contains(tables[0].note, "power limit"));
  EXPECT_TRUE(contains(tables[1].note, "1 of 2 times at the GPU's power limit")) << tables[1].note;
}

TEST(Times, AnotherRegimesLayoutWindowLeavesTheBestUnmarked) {
  RunData run = run_in_two_regimes();
  run.records[1].time->regime = "cooled";
  run.records[1].suite = run.records[0].suite;
  const auto tables = time_tables(run);
  for (const Cell& cell : tables[0].rows.at(0)) EXPECT_EQ(cell.tone, Tone::plain) << cell.text;
}

TEST(Times, RegimesAreSetAgainstEachOther) {
  EXPECT_TRUE(regime_table(test_run()).rows.empty());
  const TextTable table = regime_table(run_in_two_regimes());
  ASSERT_EQ(table.rows.size(), 1u);
  EXPECT_EQ(texts(table.rows[0]), (Words{"flash_varlen", "forward", "sustained / cooled", "1", "1.100", "1.100", "1.100"}));
  EXPECT_TRUE(contains(summary_markdown(run_in_two_regimes()), "## Regimes"));
  EXPECT_FALSE(contains(summary_markdown(test_run()), "## Regimes"));
}

TEST(Times, OnlyPassedRecordsHaveAny) {
  const RunData run = test_run();
  for (const std::string& format : report_formats()) {
    const std::string text = render_report(run, format, {.width = 1000});
    EXPECT_FALSE(contains(text, "987654") || contains(text, "987655") || contains(text, "9.876")) << format;
    EXPECT_FALSE(contains(text, "988 ±")) << format;
  }
}

TEST(Differences, LargestOfBothOrders) {
  const auto tables = difference_tables(test_run());
  ASSERT_EQ(tables.size(), 2u);
  EXPECT_EQ(tables[0].title, "Largest differences of o, bf16 (2 cases)");
  EXPECT_EQ(texts(tables[0].rows[0]), (Words{"flash_varlen", "·", "0.0150"}));
  EXPECT_EQ(texts(tables[0].rows[1]), (Words{"eager", "0.00300", "·"}));
  EXPECT_EQ(tables[1].rows[0][2].text, "nan");
}

TEST(Console, FailuresStandFirst) {
  const std::string text = console_report(test_run(), {});
  EXPECT_TRUE(text.starts_with("1 failure (gated), 1 finding (not gated)\n\nFAILED flash_varlen backward: dq (1 case, bf16)\n"))
      << text;
  EXPECT_TRUE(contains(text, kRepro));
  EXPECT_FALSE(contains(text, "\033"));
  EXPECT_LT(text.find("Safety"), text.find("Verdicts"));
  EXPECT_LT(text.find("Verdicts"), text.find("Median time"));
  EXPECT_LT(text.find("GFLOP/s"), text.find("Largest differences"));
}

TEST(Console, ManyKindsOfFailureAreCapped) {
  RunData run = test_run();
  Record failing = run.records[4];
  for (int i = 0; i < 23; ++i) {
    failing.errors["tensor " + std::to_string(i)].gates["z"] = {2, 1, 3, Gate::Verdict::fail};
    run.records.push_back(failing);
  }
  const std::string text = console_report(run, {});
  EXPECT_TRUE(contains(text, "24 failures (gated), 1 finding (not gated)"));
  EXPECT_TRUE(contains(text, "… and 13 more kinds of failure, in summary.md"));
}

TEST(Console, AnEmptyRunHasNothingToSay) {
  EXPECT_EQ(console_report(RunData{}, {}), "");
}

TEST(Summary, HoldsWhatAReaderNeeds) {
  const std::string text = summary_markdown(test_run());
  for (const std::string part :
       {"# attnbench run 20260102-030405-perf\n", "attnbench --suite perf --filter 'it'\\''s'  # run 20260102-030405-perf",
        "| cpu.model | A \"fast\" CPU |", "### Failure: FAILED flash_varlen backward: dq",
        "### Finding: ERROR eager forward: worker died", "verdict refused", "fails ours only", "no softcap",
        "### Largest differences of dq, bf16"}) {
    EXPECT_TRUE(contains(text, part)) << part;
  }
  EXPECT_TRUE(contains(text, kRepro));
  EXPECT_FALSE(contains(text, "shown"));
}

}  // namespace
}  // namespace attnbench
