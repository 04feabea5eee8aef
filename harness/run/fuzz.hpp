// Random cases through the backends, and for each that a gated one gets wrong the smallest case that it still gets wrong.
#pragma once

#include <string>
#include <vector>

#include "harness/run/command_line.hpp"
#include "harness/run/run_setup.hpp"

namespace attnbench {

/// Of one backend and pass, this many red cases are shrunk; most of the others tell the same story, and are only listed.
inline constexpr int kMostShrunk = 16;

/// In the folder of a run: what was found, and what it was shrunk to.
inline constexpr const char* kFuzzFile = "fuzz.md";

struct FuzzOutcome {
  RunOutcome run;
  std::string findings;  ///< the text of fuzz.md
};

/// Judges random_case(seed, 0), random_case(seed, 1), … and writes DIR/results.jsonl as a run does; what is tried while a case is
/// shrunk goes to DIR/fuzz.md alone. Throws what run_suites() throws.
FuzzOutcome fuzz(const FuzzCommand& command, const std::vector<std::string>& arguments);

}  // namespace attnbench
