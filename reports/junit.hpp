// JUnit XML, the subset that Jenkins, GitLab and GitHub actions read.
#pragma once

#include <string>

#include "harness/run/run_data.hpp"

namespace attnbench {

/// One testsuite for each suite; one testcase for each record and tensor ("CASE [dq]"), or for the record alone where no
/// tensor was judged or none of its gates explains the status. classname is "backend.pass.dtype"; the repro line is in
/// system-out.
/// - failure: a gate failed, the record is mistrusted, or a declared capability is unsupported; error: a crash, hang or
/// exception;
/// - skipped: unsupported or skipped; and what is red of a backend that is not gated, so that the file agrees with the exit code.
std::string junit_xml(const RunData& run);

}  // namespace attnbench
