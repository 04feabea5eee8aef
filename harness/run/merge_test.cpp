// Shards, and their merge into the whole.
#include <algorithm>
#include <filesystem>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/exit_code.hpp"
#include "harness/run/test_attnbench.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

TEST_F(Attnbench, ShardsMergeIntoTheWholeInAnyOrder) {
  EXPECT_EQ(run(cases(7)).exit_code, kExitOk);
  std::vector<std::string> parts;
  for (int shard : {1, 2, 3}) {
    const std::string name = fmt::format("part{}", shard);
    EXPECT_EQ(run(joined(cases(7, name), {"--shard", fmt::format("{}/3", shard)})).exit_code, kExitOk);
    parts.push_back(path(name));
  }
  std::string merged;
  do {
    std::vector<std::string> merge = joined({"merge"}, parts);
    merge.push_back(parts[0]);  // named twice
    fs::remove_all(folder_ / "merged");
    const Answer answer = run(joined(merge, {"--out", path("merged")}), "none");
    EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
    EXPECT_THAT(answer.out, testing::Not(HasSubstr("missing")));
    EXPECT_EQ(outcomes(results("merged")), outcomes(results()));
    const std::string text = read_text(folder_ / "merged" / kResultsFile);
    EXPECT_TRUE(merged.empty() || text == merged);
    merged = text;
  } while (std::ranges::next_permutation(parts).found);
}

TEST_F(Attnbench, AMergeOfTwoShardsOfThreeIsNotTheWhole) {
  EXPECT_EQ(run(cases(7)).exit_code, kExitOk);
  for (int shard : {1, 3}) run(joined(cases(7, fmt::format("part{}", shard)), {"--shard", fmt::format("{}/3", shard)}));
  const Answer answer = run({"merge", path("part1"), path("part3"), "--out", path("merged")}, "none");
  EXPECT_EQ(answer.exit_code, kExitInfrastructure) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("shard 2/3 is missing"));
  EXPECT_THAT(answer.out, HasSubstr("incomplete: "));
  EXPECT_NE(outcomes(results("merged")), outcomes(results()));
  EXPECT_THAT(run({"report", path("merged"), "--format", "junit"}, "none").out, HasSubstr("shard 2/3 is missing"));
  const Answer resumed = run({"--resume", path("merged")});
  EXPECT_EQ(resumed.exit_code, kExitUsage);
  EXPECT_THAT(resumed.out, HasSubstr("was merged from shards"));
}

TEST_F(Attnbench, AMergeOfOneShardIsNotTheWhole) {
  const Answer part = run(joined(cases(7, "part1"), {"--shard", "1/3"}));
  EXPECT_EQ(part.exit_code, kExitOk) << part.out;
  const Answer answer = run({"merge", path("part1"), "--out", path("merged")}, "none");
  EXPECT_EQ(answer.exit_code, kExitInfrastructure) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("incomplete: shard 2/3 is missing; shard 3/3 is missing"));
  EXPECT_EQ(run({"--resume", path("merged")}).exit_code, kExitUsage);
  for (int shard : {2, 3}) run(joined(cases(7, fmt::format("part{}", shard)), {"--shard", fmt::format("{}/3", shard)}));
  const Answer all = run({"merge", path("merged"), path("part1"), path("part2"), path("part3"), "--out", path("all")}, "none");
  EXPECT_EQ(all.exit_code, kExitOk) << all.out;
}

TEST_F(Attnbench, APartThatHasNotEndedLeavesTheMergeIncomplete) {
  for (int shard : {1, 2}) run(joined(cases(7, fmt::format("part{}", shard)), {"--shard", fmt::format("{}/2", shard)}));
  const fs::path file = folder_ / "part2" / kResultsFile;
  fs::resize_file(file, fs::file_size(file) * 2 / 3);
  const Answer answer = run({"merge", path("part1"), path("part2"), "--out", path("merged")}, "none");
  EXPECT_EQ(answer.exit_code, kExitInfrastructure) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("of 28 results are here: the run has not ended; resume the parts"));
}

TEST_F(Attnbench, RunsOfOtherCommandsAreNotMerged) {
  run(joined(cases(4, "part1"), {"--shard", "1/2"}));
  run(joined(cases(4, "third"), {"--shard", "2/3"}));
  run(joined(cases(4, "eager"), {"--shard", "2/2", "--backend", "eager"}));
  const Answer counts = run({"merge", path("part1"), path("third"), "--out", path("merged")}, "none");
  EXPECT_EQ(counts.exit_code, kExitUsage);
  EXPECT_THAT(counts.out, HasSubstr("shards of 2 and of 3"));
  const Answer commands = run({"merge", path("part1"), path("eager"), "--out", path("merged")}, "none");
  EXPECT_EQ(commands.exit_code, kExitUsage);
  EXPECT_THAT(commands.out, HasSubstr("--backend eager'"));
  EXPECT_FALSE(fs::exists(folder_ / "merged"));
}

TEST_F(Attnbench, RunsThatOverlapAreNotMerged) {
  EXPECT_EQ(run(cases(2, "good")).exit_code, kExitOk);
  EXPECT_EQ(run(cases(2, "bad"), "--status failed").exit_code, kExitGate);
  const Answer answer = run({"merge", path("bad"), path("good"), "--out", path("merged")}, "none");
  EXPECT_EQ(answer.exit_code, kExitUsage);
  EXPECT_THAT(answer.out, HasSubstr("good are no parts of one run"));
  EXPECT_THAT(answer.out, HasSubstr("flash_varlen forward on cpu (failed and passed); attention d=64 lq=1"));
  EXPECT_FALSE(fs::exists(folder_ / "merged"));
}

}  // namespace
}  // namespace attnbench
