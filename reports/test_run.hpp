// A small run made by hand: what the tests of the writers report on.
#pragma once

#include "harness/run/run_data.hpp"

namespace attnbench {

/// Two backends (flash_varlen: ours; eager: not), suites perf and edge, on a CPU:
/// - perf, two cases: both backends pass forward and are timed; op+layout for flash_varlen, eager's is unconverged;
/// - perf, backward of the first case: flash_varlen fails on dq (gate z; eager's own rule would have let it pass) although the
///   record carries a time; eager passes;
/// - edge: eager erred with a reason that needs quoting; flash_varlen is unsupported, outside what it declares.
RunData test_run();

}  // namespace attnbench
