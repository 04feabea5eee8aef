// What a user should do about a red result: cases/advice.json, a table of what is known to be true.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "harness/run/record.hpp"

namespace attnbench {

/// A row speaks of a record that fits all of its fields; of several rows the first.
struct Advice {
  std::vector<std::string> backends;
  std::string device;              ///< "cpu", "cuda" or "any"
  std::string pass;                ///< "forward", "backward" or "any"
  std::string status;              ///< "failed", "error" or "mistrusted"
  std::vector<std::string> tells;  ///< parts of "REASON | SIGNATURE | CASE ", each of which must be in it; with a leading ! not
  std::string cause, advice;       ///< a phrase; sentences
  std::string source;              ///< a link; may be empty
};

/// Throws RunError with a sentence if the file is not such a table.
std::vector<Advice> read_advice();

/// `signature`: of the record's group (finding_groups.hpp). Null: nothing is known.
const Advice* advice_on(const Record& record, const std::string& signature, const std::vector<Advice>& table);

}  // namespace attnbench
