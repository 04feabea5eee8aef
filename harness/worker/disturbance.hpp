// What else happens while a backend is called again and again. Calls that have to give equal bits are made in unequal conditions:
//   CPU  LibTorch has the number of threads that it had, then 1, 2 and 3 of them, in turn
//   GPU  calls are made on a stream of LibTorch's pool, which does not wait for the default stream; another stream is kept at
//        work that is none of theirs; and their last input (V of a forward, dO of a backward) is NaN until a fraction of a
//        millisecond after the call was queued: who reads it on another stream, without waiting for this one, reads NaN
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "harness/run/declaration.hpp"

namespace attnbench {

class Disturbance {
 public:
  virtual ~Disturbance() = default;

  struct Condition {
    Relation relation = Relation::repeats;  ///< under which the call's bits are to be equal
    std::string text;                       ///< "with 1 thread"; empty: an undisturbed call
  };
  /// Makes the condition of call number `call` and says which it is. What a call changed is put back by the next, or at the end.
  virtual Condition before_call(int64_t call) = 0;

  /// Keeps the current stream busy for a while; work that is queued behind this is late. Empty: nothing can be late here.
  virtual std::function<void()> delay() = 0;
};

std::unique_ptr<Disturbance> make_disturbance(const Device& device);

/// That of a GPU (gpu_disturbance.cpp; no_cuda.cpp throws UsageError).
std::unique_ptr<Disturbance> make_gpu_disturbance(const Device& device);

}  // namespace attnbench
