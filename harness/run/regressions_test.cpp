// The suite of bugs that shipped holds each of them by name, with its links and a sentence.
#include <map>
#include <regex>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "harness/run/list_cases.hpp"
#include "harness/run/suite.hpp"

namespace attnbench {
namespace {

/// Reports by the bug that they tell of: repository and number.
const std::map<std::string, std::set<std::string>> kReports{
    {"neg_lse_tail", {"pytorch#196678", "cudnn-frontend#1072"}},
    {"first_block_masked_negative", {"flash-attention#2082"}},
    {"finite_sentinel", {"flashinfer#4267", "flashinfer#4451"}},
    {"empty_row_lse", {"flashinfer#4452", "flash-attention#978"}},
    {"lse_unpadded_early_exit", {"flash-attention#2842", "flash-attention#2573"}},
    {"lse_ln2", {"pytorch#181645"}},
    {"lse_stride", {"cudnn-frontend#304"}},
    {"token_tail_nan", {"flash-attention#1228", "flash-attention#2324", "pytorch#176793", "cudnn-frontend#624"}},
    {"padded_thd", {"cudnn-frontend#737", "flash-attention#1990"}},
    {"zero_q", {"flash-attention#2421", "flash-attention#2562"}},
    {"zero_k", {"cudnn-frontend#943"}},
    {"hang", {"flash-attention#1254"}},
    {"bwd_tail_nan", {"flash-attention#334", "flash-attention#443", "flash-attention#1052"}},
    {"dout_strides", {"flash-attention#355", "pytorch#134001", "pytorch#138354"}},
    {"stride0_kv", {"pytorch#191937"}},
    {"upstream_race", {"flash-attention#2481"}},
    {"int_overflow", {"flash-attention#1500", "pytorch#187227", "pytorch#162588"}},
    {"window_right_gt_k", {"flash-attention#895"}},
    {"align_qk", {"cutlass#2336"}},
    {"fully_masked", {"pytorch#103963", "pytorch#109517"}},
    {"structured_batch2", {"TransformerEngine#3216"}},
    {"memeff_nan_grad", {"pytorch#119320"}},
    {"softcap_formula", {"flash-attention#2402"}},
    {"tile_tail_nan", {"flash-attention#1745", "flash-attention#2374"}},
    {"varlen_gqa_maxlen1", {"flash-attention#1537"}},
    {"checker_nan", {"pygpubench#7"}},
};

/// "pytorch#196678" of a link to an issue or a pull request; empty: it is none.
std::string report_of(const std::string& link) {
  static const std::regex form("https://github\\.com/[A-Za-z0-9_.-]+/([A-Za-z0-9_.-]+)/(issues|pull)/([1-9][0-9]*)");
  std::smatch parts;
  return std::regex_match(link, parts, form) ? parts[1].str() + "#" + parts[3].str() : "";
}

TEST(Regressions, LinksAreToOneReport) {
  EXPECT_EQ(report_of("https://github.com/pytorch/pytorch/issues/196678"), "pytorch#196678");
  EXPECT_EQ(report_of("https://github.com/Dao-AILab/flash-attention/pull/978"), "flash-attention#978");
  for (const char* link : {"", "pytorch#196678", "https://github.com/pytorch/pytorch/issues/", "http://github.com/a/b/issues/1",
                           "https://github.com/pytorch/pytorch/issues/1,https://github.com/pytorch/pytorch/issues/2"})
    EXPECT_EQ(report_of(link), "") << link;
}

TEST(Regressions, EachHasItsCasesItsLinksAndASentence) {
  std::map<std::string, std::set<std::string>> found;
  for (const char* suite : {"regressions", "huge"}) {
    for (const SuiteCase& entry : load_suite(suite).cases) {
      const Metadata& metadata = entry.c.metadata;
      EXPECT_GE(metadata.why.size(), 20u) << entry.where;
      EXPECT_FALSE(metadata.name.empty()) << entry.where;
      if (!kReports.contains(metadata.name)) continue;
      const std::string report = report_of(metadata.source);
      EXPECT_FALSE(report.empty()) << entry.where << ": source=" << metadata.source;
      found[metadata.name].insert(report);
    }
  }
  EXPECT_EQ(found, kReports);
}

TEST(Regressions, HoldNothingElse) {
  for (const SuiteCase& entry : load_suite("regressions").cases)
    EXPECT_TRUE(kReports.contains(entry.c.metadata.name)) << entry.where;
}

/// Of equal cases the first counts: a suite that came before would take the name away.
TEST(Regressions, KeepTheirNamesInFull) {
  std::map<std::string, Metadata> full;
  for (const SuiteCase& entry : load_suite("full").cases) full.emplace(format_case(entry.c), entry.c.metadata);
  for (const SuiteCase& entry : load_suite("regressions").cases)
    EXPECT_EQ(full.at(format_case(entry.c)), entry.c.metadata) << entry.where;
}

TEST(Regressions, AreExplainedWithTheirCasesBelow) {
  const std::string line = "attention d=8 lq=4", why = " # name=tail source=https://x/1 why=\"it leaks\"";
  Suite suite{"s", {{parse_case(line), ""}, {parse_case(line + " seed=1" + why), ""}, {parse_case(line + " seed=2" + why), ""}}};
  EXPECT_EQ(list_cases({suite}, true),
            "attention d=8 lq=4\n\ntail: it leaks\nhttps://x/1\n  attention d=8 lq=4 seed=1\n  attention d=8 lq=4 seed=2\n");
  EXPECT_EQ(list_cases({suite}, false), "attention d=8 lq=4\nattention d=8 lq=4 seed=1\nattention d=8 lq=4 seed=2\n");
}

TEST(Regressions, AreExplainedByWhatIsExpectedOfWhom) {
  const std::string line = "llama hq=2 d=8 s=4", name = " # name=past why=\"it has one\" backend=";
  const Suite suite{"s",
                    {{parse_case(line + " past=2" + name + "a expect=must_throw message=\"no past\""), ""},
                     {parse_case(line + " past=3" + name + "b expect=must_differ instead=top_left"), ""},
                     {parse_case(line + " past=4" + name + "c"), ""},
                     {parse_case(line + " past=5 # timed=no expect=equal"), ""}}};
  EXPECT_EQ(list_cases({suite}, true),
            "past: it has one\nexpect=must_throw backend=a message=\"no past\"\n  llama hq=2 d=8 s=4 past=2\n\n"
            "past: it has one\nexpect=must_differ backend=b instead=top_left\n  llama hq=2 d=8 s=4 past=3\n\n"
            "past: it has one\nbackend=c\n  llama hq=2 d=8 s=4 past=4\n\nllama hq=2 d=8 s=4 past=5\n");
}

}  // namespace
}  // namespace attnbench
