// A small run made by hand: what the tests of the writers report on.
#pragma once

#include <string>
#include <vector>

#include "harness/run/run_data.hpp"
#include "reports/text_table.hpp"

namespace attnbench {

/// Two backends (flash_varlen: ours; eager: not), suites perf and edge, on a CPU:
/// - perf, two cases: both backends pass forward and are timed; op+layout for flash_varlen, eager's is unconverged;
/// - perf, backward of the first case: flash_varlen fails on dq (gate z; eager's own rule would have let it pass) although the
///   record carries a time; eager passes;
/// - edge: eager erred with a reason that needs quoting; flash_varlen is unsupported, outside what it declares.
RunData test_run();

/// test_run() with one record as a GPU has them: its first window cooled, all of them sustained and 10% slower.
RunData run_in_two_regimes();

/// The repro line of its only gated failure.
inline const std::string kRepro =
    "attnbench --case \"attention b=2 hq=4 lq=128 d=128 mask=causal layout=padded\" --backend flash_varlen --pass backward";

using Words = std::vector<std::string>;

/// What stands in the cells of a row.
inline std::vector<std::string> texts(const std::vector<Cell>& row) {
  std::vector<std::string> all;
  for (const Cell& cell : row) all.push_back(cell.text);
  return all;
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace attnbench
