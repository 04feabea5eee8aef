#include "harness/run/safety.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "harness/run/data_files.hpp"

namespace attnbench {
namespace {

const std::vector<int> kSms = {70, 75, 80, 86, 89, 90, 120};

SafetyQuery backward(std::string implementation, std::string version, int64_t head_dim, bool dropout = false) {
  return {.sm = std::nullopt,
          .head_dim = head_dim,
          .dtype = Dtype::fp16,
          .backward = true,
          .dropout = dropout,
          .implementation = std::move(implementation),
          .version = std::move(version)};
}

/// One letter for each SM of kSms: o(k), r(efused), s(ilently unsafe).
std::string verdicts(SafetyQuery query) {
  std::string letters;
  for (int sm : kSms) {
    query.sm = sm;
    const Safety result = safety(query);
    letters += result.verdict[0];
    // A verdict without its reason and source would be a rumour.
    EXPECT_EQ(result.verdict == "ok", result.reason.empty());
    EXPECT_EQ(result.verdict == "ok", result.source.empty());
  }
  return letters;
}

SafetyQuery forward(SafetyQuery query) {
  query.backward = false;
  return query;
}
SafetyQuery in_bf16(SafetyQuery query) {
  query.dtype = Dtype::bf16;
  return query;
}

// SM 7.0 7.5 8.0 8.6 8.9 9.0 12.0
TEST(Safety, FlashAttention1) {
  for (const char* version : {"0.2.1", "1.0.9"}) {
    EXPECT_EQ(verdicts(backward("flash_attn", version, 64)), "rooooor");
    EXPECT_EQ(verdicts(backward("flash_attn", version, 65)), "rrorror");
    EXPECT_EQ(verdicts(backward("flash_attn", version, 128)), "rrorror");
    EXPECT_EQ(verdicts(forward(backward("flash_attn", version, 128))), "rooooor");
    EXPECT_EQ(verdicts(forward(backward("flash_attn", version, 129))), "rrrrrrr");
    EXPECT_EQ(verdicts(in_bf16(forward(backward("flash_attn", version, 64)))), "rroooor");
  }
  EXPECT_EQ(verdicts(backward("flash_attn", "0.2.0", 128)), "ooooooo");
}

TEST(Safety, FlashAttention2UpTo254) {
  for (const char* version : {"2.0.0", "2.0.9", "2.5.4"}) {
    EXPECT_EQ(verdicts(backward("flash_attn", version, 192)), "rroooor");
    EXPECT_EQ(verdicts(backward("flash_attn", version, 193)), "rrorror");
    EXPECT_EQ(verdicts(backward("flash_attn", version, 256)), "rrorror");
    EXPECT_EQ(verdicts(forward(backward("flash_attn", version, 256))), "rroooor");
    EXPECT_EQ(verdicts(forward(backward("flash_attn", version, 257))), "rrrrrrr");
  }
}

TEST(Safety, FlashAttention2From255To261) {
  for (const char* version : {"2.5.5", "2.6.1"}) {
    EXPECT_EQ(verdicts(backward("flash_attn", version, 192, true)), "rroooor");
    EXPECT_EQ(verdicts(backward("flash_attn", version, 224)), "rrorror");
    EXPECT_EQ(verdicts(backward("flash_attn", version, 256)), "rroooor");
    EXPECT_EQ(verdicts(backward("flash_attn", version, 256, true)), "rrorror");
  }
}

TEST(Safety, FlashAttention2From262To272) {
  for (const char* version : {"2.6.2", "2.7.2"}) {
    EXPECT_EQ(verdicts(backward("flash_attn", version, 224)), "rroooor");
    EXPECT_EQ(verdicts(backward("flash_attn", version, 224, true)), "rrorror");
    EXPECT_EQ(verdicts(backward("flash_attn", version, 256, true)), "rrorror");
  }
}

TEST(Safety, FlashAttention2From273LaunchesNothing) {
  for (const char* version : {"2.7.3", "2.8.3", "2.10.0", "main"}) {
    EXPECT_EQ(verdicts(backward("flash_attn", version, 192, true)), "rrooooo");
    EXPECT_EQ(verdicts(backward("flash_attn", version, 193, true)), "rrossos");
    EXPECT_EQ(verdicts(backward("flash_attn", version, 256, true)), "rrossos");
    EXPECT_EQ(verdicts(backward("flash_attn", version, 256, false)), "rrooooo");
    EXPECT_EQ(verdicts(forward(backward("flash_attn", version, 256, true))), "rrooooo");
  }
}

TEST(Safety, PyTorchsFlashKernel) {
  EXPECT_EQ(verdicts(backward("pytorch_flash", "2.11.0+cu130", 128)), "rrooooo");
  EXPECT_EQ(verdicts(backward("pytorch_flash", "2.11.0+cu130", 192, true)), "rrooooo");
  EXPECT_EQ(verdicts(backward("pytorch_flash", "2.11.0+cu130", 224)), "rrorror");
  EXPECT_EQ(verdicts(backward("pytorch_flash", "2.11.0+cu130", 256)), "rrooooo");
  EXPECT_EQ(verdicts(backward("pytorch_flash", "2.11.0+cu130", 256, true)), "rrorror");
  EXPECT_EQ(verdicts(forward(backward("pytorch_flash", "2.11.0+cu130", 224))), "rrooooo");
  EXPECT_EQ(verdicts(backward("pytorch_flash", "2.11.0+cu130", 264)), "rrrrrrr");
}

TEST(Safety, OurKernelsAndThoseWithoutARow) {
  EXPECT_EQ(verdicts(backward("attnbench", "0.1.0", 64)), "rrooooo");
  for (const char* implementation : {"eager", "eigen", "pytorch_math"})
    EXPECT_EQ(verdicts(backward(implementation, "", 256, true)), "ooooooo");
}

TEST(Safety, BelowSm8EveryPassIsFlaggedAndABackwardOfLargeHeadsByTwoRules) {
  for (int sm : kSms) {
    for (int64_t head_dim : {64, 65, 128}) {
      SafetyQuery query = backward("eager", "", head_dim);
      query.sm = sm;
      EXPECT_EQ(safety(query).sm_below_8, sm < 80);
      EXPECT_EQ(safety(query).backward_d_above_64_sm_below_8, sm < 80 && head_dim > 64);
      query.backward = false;
      EXPECT_EQ(safety(query).sm_below_8, sm < 80);
      EXPECT_FALSE(safety(query).backward_d_above_64_sm_below_8);
    }
  }
}

TEST(Safety, WithoutAGpuNothingIsFlagged) {
  const Safety result = safety(backward("flash_attn", "2.8.3", 256, true));
  EXPECT_FALSE(result.sm_below_8 || result.backward_d_above_64_sm_below_8);
  EXPECT_EQ(result.verdict, "ok");
}

TEST(Safety, EveryRowOfTheTableHasASource) {
  const auto table = nlohmann::json::parse(std::ifstream(cases_folder() / "safety.json"));
  std::set<std::string> implementations;
  for (const auto& row : table.at("rows")) {
    implementations.insert(row.at("implementation"));
    EXPECT_FALSE(row.at("source").get<std::string>().empty()) << row;
    EXPECT_LE(row.at("min_head_dim"), row.at("max_head_dim")) << row;
  }
  EXPECT_EQ(implementations, (std::set<std::string>{"attnbench", "flash_attn", "pytorch_flash"}));
}

}  // namespace
}  // namespace attnbench
