// Exit codes of every attnbench command. README.md prints the table.
#pragma once

namespace attnbench {

enum ExitCode : int {
  kExitOk = 0,              ///< every gated run passed, was skipped or is outside its backend's capabilities; one was judged
  kExitGate = 1,            ///< a gated run failed, erred, is mistrusted, or is unsupported inside its capabilities
  kExitUsage = 2,           ///< bad option, case, suite file or unreadable run
  kExitInfrastructure = 3,  ///< no worker could be kept alive, or too little evidence to answer
  kExitNoMatch = 4,         ///< the filter matched nothing
  kExitAllSkipped = 77,     ///< everything was skipped
  kExitInterrupted = 130,   ///< Ctrl-C: the run is readable and can be resumed
  kExitTerminated = 143,    ///< SIGTERM: likewise
};

}  // namespace attnbench
