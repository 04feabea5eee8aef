// Red results that are alike, told once: a kernel that is wrong in one way is wrong in hundreds of cases.
#pragma once

#include <string>
#include <vector>

#include "reports/findings.hpp"

namespace attnbench {

/// Findings of one backend, pass and status with the same signature.
struct FindingGroup {
  std::vector<Finding> findings;     ///< in the run's order; never empty
  std::string signature;             ///< the tensors that failed ("dk, dv", "lse (not finite)"), else the start of the reason
  const Record* smallest = nullptr;  ///< the one with the fewest scores to compute: the one to debug
  const Record* worst = nullptr;     ///< the one with the largest statistic / limit; smallest where no gate failed

  bool gated() const { return findings.front().gated; }
};

/// The tensors of the record that a gate failed, "dk, dq (not finite)"; without any the beginning of the reason, # for each
/// number.
std::string signature_of(const Record& record);

/// How large its case is: query-key pairs of all heads, and the tokens; infinite if this version cannot read the case.
double scores_to_compute(const Record& record);

/// The gated groups first, each in the order of its first finding.
std::vector<FindingGroup> group_findings(const std::vector<Finding>& findings);

/// "FAILED sdpa_flash forward: lse (296 cases, bf16 fp16)".
std::string headline(const FindingGroup& group);

/// What to know of a group, a line each: details of the smallest case; then how far the worst one is off, and its repro line.
std::vector<std::string> details(const FindingGroup& group, bool with_map);

}  // namespace attnbench
