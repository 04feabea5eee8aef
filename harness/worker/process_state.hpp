// What a backend shares with everybody else in the process, and must leave as it found it. Threads of LibTorch's pool live on
// between calls: one that rounds otherwise changes what the next backend computes.
#pragma once

#include <string>
#include <vector>

namespace attnbench {

/// LibTorch's number of threads, whether it records gradients, what precision it may give up and which kernels it may choose, and
/// how the calling thread and those of LibTorch's pool round and treat subnormals.
class ProcessState {
 public:
  /// As it is now.
  ProcessState();

  /// Puts it back. A sentence about what was different ("left 1 thread to LibTorch, which had 2"); empty: nothing.
  std::string restore() const;

 private:
  int threads_;
  bool records_gradients_;
  std::vector<int> settings_;
  unsigned arithmetic_;  ///< of the calling thread: MXCSR without its flags of past exceptions; 0 on other processors than x86
};

}  // namespace attnbench
