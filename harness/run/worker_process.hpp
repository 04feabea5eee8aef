// A worker: a program in a process group of its own that speaks JSON lines (protocol.hpp) on two descriptors.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>
#include <nlohmann/json.hpp>

namespace attnbench {

/// What came from a worker, or what came instead.
struct WorkerEvent {
  enum class Kind {
    message,  ///< an object of the protocol
    rubbish,  ///< a line that is no JSON object: `text` quotes it
    ended,    ///< the worker is gone; close() says how
    silence,  ///< nothing until the deadline
  };
  Kind kind = Kind::silence;
  nlohmann::json message;
  std::string text;
};

class WorkerProcess {
 public:
  using Deadline = std::chrono::steady_clock::time_point;

  /// Starts `command`, to which "--requests-fd N --replies-fd N" is added. Its stdout and stderr are appended to `log`.
  /// A command that cannot be executed ends with exit code 127 and a line in the log. Throws InfrastructureError when no
  /// process can be made.
  WorkerProcess(std::vector<std::string> command, const std::filesystem::path& log);
  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;
  ~WorkerProcess();  ///< kills the group if it still runs

  /// False: the worker is gone, or did not read until the deadline.
  bool send(const nlohmann::json& message, Deadline deadline);

  /// Waits for the next event. `tick` is called a few times a second while waiting. Throws Interrupted after a signal.
  template <class Tick>
  WorkerEvent next(Deadline deadline, Tick&& tick) {
    for (;;) {
      if (auto event = poll_once(deadline)) return *event;
      tick();
    }
  }

  /// Closes the request descriptor, waits for the end until `deadline`, then kills the group. Says how it ended:
  /// "exited with code 3", "was killed by signal 11 (SIGSEGV: Segmentation fault)", "had to be killed".
  std::string close(Deadline deadline);
  /// Exit code of a worker that ended by itself; -1: by a signal, or killed here. After close().
  int exit_code() const { return exit_code_; }

 private:
  std::optional<WorkerEvent> poll_once(Deadline deadline);
  std::optional<WorkerEvent> take_line();
  void read_available();
  bool has_ended();

  pid_t process_ = -1;  ///< and its group; -1 after close()
  int requests_ = -1, replies_ = -1;
  std::string received_;
  bool replies_closed_ = false;
  int exit_code_ = -1;
};

/// The last `count` lines of a log from byte `begin` on, without the frames of stack traces; empty if there are none.
std::string last_lines(const std::filesystem::path& log, std::uintmax_t begin, size_t count = 3);

}  // namespace attnbench
