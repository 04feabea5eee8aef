// The tables and the JSON of a selftest that was made by hand.
#include "reports/selftest_report.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "reports/test_run.hpp"

namespace attnbench {
namespace {

PlantedPair caught(const std::string& defect, std::set<Alarm> alarms) {
  return {defect, "attention d=64 lq=65",       "cpu", Fate::caught, false, std::move(alarms), {},
          {},     defect.ends_with(":crashes"), {}};
}

/// Four defects: one that two backends have, one that crashes, one that survives; and one that is outside.
Selftest small_selftest() {
  Selftest selftest;
  selftest.pairs = {
      caught("eager:key_lost", {{"z", "o"}, {"z", "dq"}, {"rms", "o"}}),
      caught("eigen:key_lost", {{"z", "o"}}),
      caught("eigen:past_the_end", {{"memory", ""}}),
      caught("eigen:crashes", {{"crash", ""}}),
      {"eager:small_bias",
       "attention d=64 lq=65",
       "cpu",
       Fate::survived,
       true,
       {},
       Statistic{"dv", "rms", 0.97, 1},
       "attnbench --known",
       false,
       {}},
      {"eigen:small_bias", "attention d=64 lq=65", "cpu", Fate::survived, false, {}, {}, "attnbench --new", false, {}},
      {"eigen:outside", "attention d=64 lq=65", "cpu", Fate::outside, false, {}, {}, {}, false, {}}};
  selftest.stale = {{"eager:key_lost", "attention d=64 lq=65", ""}};
  selftest.tensors = 10;
  selftest.false_alarms = {{"eager", "z of o", "attention d=64 lq=65", "attnbench --sound"}};
  return selftest;
}

TEST(SelftestReport, HasARowForEachDefectThatCounts) {
  const TextTable table = defect_table(small_selftest(), 0);
  ASSERT_EQ(table.rows.size(), 4u);
  const auto texts = [&](size_t row) {
    Words words;
    for (const Cell& cell : table.rows[row]) words.push_back(cell.text);
    return words;
  };
  EXPECT_EQ(texts(0), (Words{"crashes", "1", "1", "1", "0", "0", "crash 1"}));
  EXPECT_EQ(texts(1), (Words{"key_lost", "2", "2", "0", "0", "0", "z o 2, rms o 1, z dq 1"}));
  EXPECT_EQ(texts(2), (Words{"past_the_end", "1", "1", "0", "0", "0", "memory 1"}));
  EXPECT_EQ(texts(3), (Words{"small_bias", "2", "0", "0", "0", "2", ""}));
  EXPECT_EQ(defect_table(small_selftest(), 1).rows[1].back().text, "z o 2, 2 more");
}

TEST(SelftestReport, CountsWhatOnlyOneGateCaught) {
  const TextTable table = gate_table(small_selftest());
  std::vector<Words> rows;
  for (const auto& row : table.rows) {
    rows.emplace_back();
    for (const Cell& cell : row) rows.back().push_back(cell.text);
  }
  EXPECT_EQ(rows, (std::vector<Words>{{"rms", "eager", "1", "0"},
                                      {"z", "eager", "1", "0"},
                                      {"crash", "eigen", "1", "1"},
                                      {"memory", "eigen", "1", "1"},
                                      {"z", "eigen", "1", "1"}}));
}

TEST(SelftestReport, HasARowForEachBackend) {
  const TextTable table = backend_table(small_selftest());
  ASSERT_EQ(table.rows.size(), 2u);
  EXPECT_EQ(table.rows[1][0].text, "eigen");
  EXPECT_EQ(table.rows[1][1].text, "4");
  EXPECT_EQ(table.rows[1][2].text, "3");
  EXPECT_EQ(table.rows[1][3].text, "1");
  EXPECT_EQ(table.rows[1][5].text, "1");
}

TEST(SelftestReport, NamesEverySurvivorTheUnknownOnesFirst) {
  for (const std::string& text : {selftest_console(small_selftest(), {}), selftest_markdown(test_run(), small_selftest())}) {
    for (const char* part : {"eager:small_bias (known): rms of dv 0.97 of its limit", "repro  attnbench --known",
                             "eigen:small_bias: no gate had the power to see it", "eager: z of o", "repro  attnbench --sound",
                             "Known survivors that survive no more"})
      EXPECT_TRUE(contains(text, part)) << part << " in " << text;
    EXPECT_LT(text.find("attnbench --new"), text.find("attnbench --known"));
  }
}

TEST(SelftestReport, TheMarkdownSaysWhereAndWhatDecided) {
  const std::string text = selftest_markdown(test_run(), small_selftest());
  EXPECT_TRUE(
      contains(text, "# attnbench selftest 20260102-030405-perf\n\ncpu: Test CPU, 2026-01-02T03:04:05Z\n\nFAILED: 1 survivor"))
      << text;
}

TEST(SelftestReport, ItsJsonHoldsTheNumbers) {
  const auto json = nlohmann::json::parse(selftest_json(small_selftest()));
  EXPECT_EQ(json["defects"], 4);
  EXPECT_EQ(json["pairs"], 6);
  EXPECT_EQ(json["caught"], 4);
  EXPECT_EQ(json["only_erred"], 1);
  EXPECT_EQ(json["equivalent"], 0);
  ASSERT_EQ(json["survivors"].size(), 2u);
  EXPECT_TRUE(json["survivors"][0]["largest"].is_null());
  EXPECT_EQ(json["survivors"][0]["known"], false);
  EXPECT_EQ(json["survivors"][1]["largest"],
            nlohmann::json::parse(R"({"tensor":"dv","gate":"rms","value":0.97,"limit":1.0,"ratio":0.97})"));
  EXPECT_EQ(json["stale"].size(), 1u);
  EXPECT_EQ(json["tensors"], 10);
  EXPECT_EQ(json["false_alarms"], 1);
  EXPECT_EQ(json["device"], "cpu");
  EXPECT_EQ(json["backends"]["eigen"], nlohmann::json::parse(R"({"pairs":4,"caught":3,"only_erred":1,"equivalent":0,"survived":1,
              "gates":{"crash":{"caught":1,"alone":1},"memory":{"caught":1,"alone":1},"z":{"caught":1,"alone":1}}})"));
  EXPECT_EQ(json["gates"]["z"], nlohmann::json::parse(R"({"caught":2,"alone":1})"));
}

}  // namespace
}  // namespace attnbench
