// Ctrl-C and SIGTERM end a run after the line that is being written.
#pragma once

#include <exception>

namespace attnbench {

/// Thrown where the coordinator notices the signal.
struct Interrupted : std::exception {
  explicit Interrupted(int signal) : signal(signal) {}
  const char* what() const noexcept override { return "interrupted"; }
  int signal;
};

/// From here on SIGINT and SIGTERM are only remembered; the second of a kind ends the program at once.
void catch_interrupts();

/// Throws Interrupted if a signal was caught.
void throw_if_interrupted();

}  // namespace attnbench
