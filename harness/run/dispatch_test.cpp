// `auto` picks nothing that the table of safety speaks against, says why, and would pick it where the table did not.
#include "harness/run/dispatch.hpp"

#include <algorithm>
#include <functional>
#include <stdexcept>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/version.hpp"

namespace attnbench {
namespace {

using testing::HasSubstr;

const AttentionCandidate kAlwaysThere{"eager", "eager", "", ""};

AttentionCandidate candidate(const std::string& implementation, const std::string& version) {
  return {implementation, implementation, version, ""};
}

/// With something safe behind it: is it taken there?
bool is_picked(const SafetyQuery& query, const SafetyTable& table) {
  const auto choice = choose_attention({candidate(query.implementation, query.version), kAlwaysThere}, query, table);
  EXPECT_EQ(choice.safety.verdict, "ok");
  return choice.picked.implementation == query.implementation;
}

SafetyTable without(const SafetyRow& row, const SafetyTable& table) {
  SafetyTable less = table;
  std::erase_if(less.rows, [&](const SafetyRow& other) {
    return other.implementation == row.implementation && other.from == row.from && other.to == row.to && other.sm == row.sm &&
           other.reason == row.reason && other.dtype == row.dtype && other.only_with_dropout == row.only_with_dropout;
  });
  return less;
}

std::string or_else(const std::string& version, const char* open) {
  return version.empty() ? open : version;
}

/// Places at the edges of a row, all inside it.
std::vector<SafetyQuery> corners(const SafetyRow& row) {
  std::vector<SafetyQuery> inside;
  for (const auto& [first, last] : row.sm)
    for (const int sm : {first, last})
      for (const int64_t head_dim : {row.min_head_dim, std::min<int64_t>(row.max_head_dim, 512)})
        for (const Dtype dtype : {Dtype::bf16, Dtype::fp16, Dtype::fp32})
          for (const bool backward : {false, true})
            for (const bool dropout : {false, true})
              for (const std::string& version : {or_else(row.from, "0.0.1"), or_else(row.to, "999.0")}) {
                if (row.pass == "backward" && !backward) continue;
                if (row.only_with_dropout && !dropout) continue;
                if (row.dtype != "any" && row.dtype != name_of(dtype)) continue;
                inside.push_back({sm, head_dim, dtype, backward, dropout, row.implementation, version});
              }
  return inside;
}

/// One step across each edge that the row has, from a place inside it.
std::vector<SafetyQuery> neighbours(const SafetyRow& row, const SafetyQuery& inside) {
  std::vector<SafetyQuery> outside;
  const auto add = [&](const std::function<void(SafetyQuery&)>& step) { step(outside.emplace_back(inside)); };
  for (const auto& [first, last] : row.sm) {
    if (first > 0) add([first = first](SafetyQuery& q) { q.sm = first - 1; });
    add([last = last](SafetyQuery& q) { q.sm = last + 1; });
  }
  if (row.min_head_dim > 1) add([&](SafetyQuery& q) { q.head_dim = row.min_head_dim - 1; });
  add([&](SafetyQuery& q) { q.head_dim = row.max_head_dim + 1; });
  if (row.pass == "backward") add([](SafetyQuery& q) { q.backward = false; });
  if (row.only_with_dropout) add([](SafetyQuery& q) { q.dropout = false; });
  if (row.dtype != "any") add([&](SafetyQuery& q) { q.dtype = Dtype::fp32; });
  return outside;
}

TEST(Dispatch, TakesNothingInsideARowAndTakesItOutside) {
  const SafetyTable& table = safety_table();
  for (const SafetyRow& row : table.rows) {
    const SafetyTable planted = without(row, table);
    ASSERT_EQ(planted.rows.size() + 1, table.rows.size()) << row.reason;
    int only_by_this_row = 0, just_outside = 0;
    for (const SafetyQuery& inside : corners(row)) {
      const std::string where =
          fmt::format("{} {} sm {} d {}: {}", row.implementation, inside.version, *inside.sm, inside.head_dim, row.reason);
      EXPECT_FALSE(is_picked(inside, table)) << where;
      if (!is_picked(inside, planted)) continue;  // another row speaks of it too
      ++only_by_this_row;
      const auto choice = choose_attention({candidate(row.implementation, inside.version), kAlwaysThere}, inside);
      ASSERT_EQ(choice.passed_over.size(), 1u) << where;
      EXPECT_EQ(choice.passed_over[0].safety.verdict, row.verdict) << where;
      for (const std::string& part : {row.verdict, row.reason, row.source}) EXPECT_THAT(sentence_of(choice), HasSubstr(part));
      for (const SafetyQuery& outside : neighbours(row, inside)) just_outside += is_picked(outside, table);
    }
    EXPECT_GT(only_by_this_row, 0) << row.reason << ": a table without the row would not be noticed";
    EXPECT_GT(just_outside, 0) << row.reason << ": nothing beside the row is taken";
  }
}

/// Backwards that the releases of flash-attn refuse or get wrong, written down anew from what they check.
bool is_unsafe_backward_of_flash_attn(const std::string& version, int sm, int64_t d, Dtype dtype, bool dropout) {
  const auto before = [&](const char* other) { return compare_versions(version, other) < 0; };
  const bool is_80_or_90 = sm == 80 || sm == 90;
  if (before("2.0.0")) return sm < 75 || sm > 90 || d > 128 || (dtype == Dtype::bf16 && sm == 75) || (d > 64 && !is_80_or_90);
  if (sm < 80 || d > 256) return true;
  if (before("2.7.3") && sm > 90) return true;
  if (before("2.5.5")) return d > 192 && !is_80_or_90;
  if (before("2.6.2")) return (d > 192 && d <= 224 && !is_80_or_90) || (d > 192 && dropout && !is_80_or_90);
  if (before("2.7.3")) return d > 192 && dropout && !is_80_or_90;
  return d > 192 && dropout && (sm == 86 || sm == 89 || sm == 120);
}

constexpr int kGridSms[] = {70, 75, 80, 86, 89, 90, 120};
constexpr int64_t kHeadDims[] = {64, 96, 128, 192, 224, 256};
constexpr Dtype kDtypes[] = {Dtype::bf16, Dtype::fp16, Dtype::fp32};
constexpr const char* kReleases[] = {"0.2.1", "1.0.9", "2.0.0", "2.0.9", "2.5.4", "2.5.5",
                                     "2.6.1", "2.6.2", "2.7.2", "2.7.3", "2.8.3", "main"};

/// Calls `check` for every place of the grid.
void for_each_place(const std::function<void(const SafetyQuery&)>& check) {
  for (const int sm : kGridSms)
    for (const int64_t head_dim : kHeadDims)
      for (const Dtype dtype : kDtypes)
        for (const bool backward : {false, true})
          for (const bool dropout : {false, true}) check({sm, head_dim, dtype, backward, dropout, "", ""});
}

int unsafe_picks(const SafetyTable& table) {
  int unsafe = 0;
  for_each_place([&](const SafetyQuery& place) {
    for (const char* release : kReleases) {
      const auto choice = choose_attention({candidate("flash_attn", release), kAlwaysThere}, place, table);
      const bool is_flash = choice.picked.implementation == "flash_attn";
      unsafe += is_flash && place.backward &&
                is_unsafe_backward_of_flash_attn(release, *place.sm, place.head_dim, place.dtype, place.dropout);
    }
  });
  return unsafe;
}

TEST(Dispatch, NeverTakesAnUnsafeBackward) {
  EXPECT_EQ(unsafe_picks(safety_table()), 0);
  for (const SafetyRow& row : safety_table().rows)
    if (row.implementation == "flash_attn" && row.min_head_dim <= 256 && row.max_head_dim >= 64 && row.pass == "backward") {
      EXPECT_GT(unsafe_picks(without(row, safety_table())), 0) << row.reason;
    }
}

TEST(Dispatch, OfTheBackendsOfThisProjectTakesNoneThatTheTableSpeaksAgainst) {
  const std::vector<AttentionCandidate> all = {{"flash_varlen", "attnbench", "0.1.0", ""},
                                               {"torch_flash_varlen", "pytorch_flash", "2.11.0", ""},
                                               {"sdpa_math", "pytorch_math", "2.11.0", ""}};
  for_each_place([&](const SafetyQuery& place) {
    const auto choice = choose_attention(all, place);
    EXPECT_EQ(choice.picked.name, *place.sm >= 80 ? "flash_varlen" : "sdpa_math");
    const auto of_torch = choose_attention({all[1], all[2]}, place);
    const bool is_99_kb = *place.sm == 86 || *place.sm == 89 || *place.sm == 120;
    const bool is_refused =
        *place.sm < 80 || (place.backward && is_99_kb && (place.head_dim == 224 || (place.head_dim > 192 && place.dropout)));
    EXPECT_EQ(of_torch.picked.name, is_refused ? "sdpa_math" : "torch_flash_varlen")
        << *place.sm << ' ' << place.head_dim << ' ' << place.backward << place.dropout;
  });
}

TEST(Dispatch, PassesOverWhatCannotTakeTheCaseAndSaysSo) {
  AttentionCandidate first = candidate("pytorch_flash", "2.11.0");
  first.why_not = "dtype=fp32: it takes bf16, fp16";
  const auto choice = choose_attention({first, kAlwaysThere}, {.sm = 80, .head_dim = 64, .dtype = Dtype::fp32});
  EXPECT_EQ(choice.picked.name, "eager");
  EXPECT_EQ(sentence_of(choice),
            "eager: the safety table has nothing against it here; passed over: pytorch_flash [dtype=fp32: it takes bf16, fp16]");
  EXPECT_EQ(sentence_of(choose_attention({kAlwaysThere}, {.sm = 80, .head_dim = 64})),
            "eager: the safety table has nothing against it here, and it is the first choice");
}

TEST(Dispatch, SaysWhyNothingIsLeft) {
  const SafetyQuery place{.sm = 86, .head_dim = 256, .dtype = Dtype::fp16, .backward = true, .dropout = true};
  try {
    choose_attention({candidate("flash_attn", "2.8.3"), candidate("pytorch_flash", "2.11.0")}, place);
    FAIL() << "picked";
  } catch (const std::runtime_error& error) {
    for (const char* part :
         {"a backward of fp16 with head dim 256 and dropout on SM 8.6", "flash_attn [silently_unsafe: the check was",
          "pytorch_flash [refused: with gradients and dropout", "https://"})
      EXPECT_THAT(error.what(), HasSubstr(part));
  }
  EXPECT_THROW(choose_attention({}, place), std::runtime_error);
}

TEST(Dispatch, GivesTheWarningOfTheTrainingStacksBesideTheVerdict) {
  for_each_place([](const SafetyQuery& place) {
    const auto choice = choose_attention({kAlwaysThere}, place);
    EXPECT_EQ(choice.safety.verdict, "ok");
    const bool warns = sentence_of(choice).find("warn here, as of any SM below 8.0, whatever the head dim") != std::string::npos;
    EXPECT_EQ(warns, *place.sm < 80) << *place.sm;
  });
}

TEST(Dispatch, WithoutAGpuTakesTheFirst) {
  const auto choice = choose_attention({candidate("flash_attn", "2.8.3"), kAlwaysThere},
                                       {.sm = {}, .head_dim = 256, .backward = true, .dropout = true});
  EXPECT_EQ(choice.picked.name, "flash_attn");
}

TEST(Dispatch, AsksForTheAttentionThatALayerCalls) {
  const Problem last = attention_of_layer(parse_case("llama hq=4 hkv=2 d=64 s=16 chunks=4 past=3 lens=12+19 pad=left")).problem;
  EXPECT_EQ(last.lq, 4);
  EXPECT_EQ(last.lk, 19);
  EXPECT_EQ(last.layout, Layout::packed);
  EXPECT_EQ(last.mask, Mask::causal);
  const Problem packed = attention_of_layer(parse_case("llama hq=4 d=64 layout=packed lens=12+16 tail=3 window=5")).problem;
  EXPECT_EQ(packed.tail, 0);
  EXPECT_EQ(packed.window->left, 5);
  EXPECT_EQ(attention_of_layer(parse_case("llama hq=4 d=64 s=8 norm=fp32")).problem.dtype, Dtype::fp32);
  EXPECT_EQ(attention_of_layer(parse_case("llama hq=4 d=64 s=8 norm=fp32 cast=norms")).problem.dtype, Dtype::bf16);
}

}  // namespace
}  // namespace attnbench
