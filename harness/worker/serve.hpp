// The worker's side of the protocol (harness/run/protocol.hpp).
#pragma once

#include "harness/worker/run_case.hpp"

namespace attnbench {

/// Who this worker is and what it can do.
Hello make_hello(const Bench& bench);

/// Says hello, then answers requests until their descriptor is closed. A line that is no request is answered with
/// {"error":{"message":…}}. Returns an exit code: 0, or 3 when nobody reads the replies.
int serve(const Bench& bench, int requests_fd, int replies_fd);

}  // namespace attnbench
