// A case of the operation `training`: a model for each backend from the same seed, held against the band of the reference.
#pragma once

#include "harness/worker/run_case.hpp"

namespace attnbench {

/// A record for each (backend, backward) of the request; a backend's run that leaves the band has failed.
void run_training_case(const Case& c, const Request& request, const Bench& bench, const Replies& replies);

}  // namespace attnbench
