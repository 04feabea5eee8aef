// How many records ended how, and what stands beside our own rule.
#pragma once

#include <string>
#include <vector>

#include "harness/run/run_data.hpp"
#include "reports/text_table.hpp"

namespace attnbench {

/// backend x pass x dtype: judged (passed, failed or mistrusted), passed, failed, mistrusted, unsupported, skipped, error.
TextTable verdict_counts(const RunData& run);

/// One sentence for each group of records that a safety rule touches (same backend, pass, SM, rules and verdict), with the
/// verdict's reason and source. Empty: no record is touched.
std::vector<std::string> safety_flags(const RunData& run);

/// What layers with a choice picked, and why; a sentence for each answer, with how many records had it.
std::vector<std::string> layer_choices(const RunData& run);

/// backend x rule of the field: passed and failed records (of cases that expect equality) that it judged too, and how often it
/// disagrees.
TextTable field_rule_counts(const RunData& run);

/// backend x tensor x gate: how often the gate had no power to judge. No rows: every gate had.
TextTable no_power_counts(const RunData& run);

/// Sentences of unsupported and skipped records, with how many records each stands for, the most frequent first.
TextTable reason_counts(const RunData& run);

}  // namespace attnbench
