// One case of the operation `llama` through its layers: each is run, judged and recorded. Nothing is timed.
#pragma once

#include "harness/worker/run_case.hpp"

namespace attnbench {

/// One record for each (layer, pass) of the request, whatever happens.
void run_llama_case(const Case& c, const Request& request, const Bench& bench, const Replies& replies);

}  // namespace attnbench
