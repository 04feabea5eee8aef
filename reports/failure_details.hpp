// How a record's tensors failed, in words: a table, which part of a tensor explains it, a map, and the known mistake that it
// resembles.
#pragma once

#include <string>
#include <vector>

#include "harness/run/record.hpp"
#include "harness/run/signature_book.hpp"

namespace attnbench {

/// Some tensor failed, and the record says how (an older one does not).
bool has_failure_details(const Record& record);

/// "likely o_zero: O is 0 (distance 0.4); as near: …": the defect that the failure resembles most, others that are as near, or
/// that it is unlike all. Empty where the record does not say how it failed.
std::string likely_mistake(const Record& record, const SignatureBook& book);

/// At most 22 lines of less than 140 columns; 12 without a map.
std::vector<std::string> failure_details(const Record& record, bool with_map);

}  // namespace attnbench
