// Suites: files of case lines with sweeps. The grammar stands in cases/README.md.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "harness/run/case.hpp"

namespace attnbench {

struct SuiteCase {
  Case c;
  std::string where;       ///< "cases/smoke.suite:12", or "--case"
  std::string suite = "";  ///< in whose file it stands, which another may include; empty: in none
  /// Planted backends (planted.hpp), `# canary=flash_varlen:lse_rounded+…`, that run on it beside the real ones: a judge that
  /// lets one of them through has lost its sight.
  std::vector<std::string> canaries = {};
};

struct Suite {
  std::string name;              ///< the file's name without folder and ".suite"
  std::vector<SuiteCase> cases;  ///< in the order of the file; of equal identities only the first
};

/// Reads a suite: a path if it exists or holds a '/', else cases/NAME.suite of the program's data.
/// Throws CaseError: unknown suite (with the nearest and all known names), a file that is not text, any bad line, more than
/// kMaxCases cases (refused before they are expanded).
Suite load_suite(std::string_view name_or_path);

/// One line with sweeps (`--case`) into its cases.
std::vector<SuiteCase> expand_line(std::string_view line, std::string_view where);

/// Names of the suites that come with the program, sorted.
std::vector<std::string> known_suites();

}  // namespace attnbench
