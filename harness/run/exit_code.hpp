// Exit codes of every attnbench command. README.md prints the table.
#pragma once

#include <exception>
#include <string>

namespace attnbench {

enum ExitCode : int {
  kExitOk = 0,              ///< every gated run passed, was skipped or is outside its backend's capabilities; one was judged
  kExitGate = 1,            ///< a gated run failed, erred, is mistrusted, or is unsupported inside its capabilities;
                            ///< of a selftest: a survivor that is not known, a known one that survives no more, a false alarm
  kExitUsage = 2,           ///< bad option, case, suite file or unreadable run
  kExitInfrastructure = 3,  ///< no worker could be kept alive, too little evidence to answer, or an error inside attnbench
  kExitNoMatch = 4,         ///< the filter matched nothing
  kExitAllSkipped = 77,     ///< everything was skipped or lies outside what the backends declare
  kExitInterrupted = 130,   ///< Ctrl-C: the run is readable and can be resumed; a selftest, an audit, a calibration or a fuzz has
                            ///< to be run again
  kExitTerminated = 143,    ///< SIGTERM: likewise
};

/// Of a run that SIGINT or SIGTERM ended.
ExitCode exit_code_of_signal(int signal);

/// How a command ends that threw: with a sentence for stderr (empty: nothing to say) and an exit code.
struct CommandEnd {
  ExitCode exit_code = kExitInfrastructure;
  std::string sentence;
};

/// What is no sentence of ours is an error inside attnbench, and said to be one.
CommandEnd end_of_command(std::exception_ptr thrown);

}  // namespace attnbench
