// Which backward is unsafe where: three separate facts about one case, from cases/safety.json (rules and rows with sources).
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "harness/run/declaration.hpp"
#include "harness/run/record.hpp"

namespace attnbench {

struct SafetyQuery {
  std::optional<int> sm;  ///< 75 = SM 7.5; unset: no GPU, nothing is flagged
  int64_t head_dim = 0;
  Dtype dtype = Dtype::bf16;
  bool backward = false;
  bool dropout = false;
  std::string implementation = "";  ///< "flash_attn", "attnbench", "pytorch_flash", …
  std::string version = "";         ///< "2.8.3"; compared number by number
};

/// Of a problem on an SM; of no implementation and version yet.
SafetyQuery safety_query(const Problem& problem, Pass pass, std::optional<int> sm);

/// One row of cases/safety.json, which says what its fields mean.
struct SafetyRow {
  std::string implementation;
  std::string from, to;  ///< versions, inclusive; empty: open
  std::vector<std::pair<int, int>> sm;
  std::string pass;   ///< "any" or "backward"
  std::string dtype;  ///< "any" or a dtype's name
  int64_t min_head_dim = 0, max_head_dim = 0;
  bool only_with_dropout = false;
  std::string verdict, reason, source;
};

/// A rule of cases/safety.json, which holds for every implementation.
struct SafetyRule {
  std::vector<std::pair<int, int>> sm;
  bool only_backward = false;
  int64_t min_head_dim = 0;
};

struct SafetyTable {
  SafetyRule sm_below_8, backward_d_above_64_sm_below_8;
  std::vector<SafetyRow> rows;
};

/// cases/safety.json, read once. Throws UsageError with a sentence where it cannot be read.
const SafetyTable& safety_table();

/// sm_below_8: any pass and head dim on SM < 8, of which the warning that FastChat's LLaMA training prints speaks.
/// backward_d_above_64_sm_below_8: the reason that warning gives, a backward with a head dim above 64.
/// verdict, reason, source: from the table's row for the implementation and version; ok where no row speaks.
Safety safety(const SafetyQuery& query, const SafetyTable& table = safety_table());

}  // namespace attnbench
