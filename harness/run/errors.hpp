// What ends a command before its answer: each is a sentence and an exit code.
#pragma once

#include <stdexcept>

namespace attnbench {

/// Something that was asked for cannot be: an option, a backend, a device. Exit code 2.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// No worker can be kept alive. Exit code 3.
class InfrastructureError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The filter left nothing. Exit code 4.
class NothingMatched : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace attnbench
