// The door through which every attention implementation comes: one file a backend, listed in backends/registry.cpp.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "harness/attention/inputs.hpp"
#include "harness/run/declaration.hpp"

namespace attnbench {

/// One timed span. forward() returns o and lse, and with dropout the mask; backward() returns dq, dk, dv and needs a forward()
/// before it; both may be called any number of times, read what the inputs hold then, and write new outputs each time. An error
/// is an exception with a sentence.
struct Window {
  std::string name;  ///< "op", "op+layout", "autograd"
  std::function<Outputs()> forward;
  std::function<Outputs()> backward;
  /// Reads the inputs anew into what the window keeps of them; empty: it keeps nothing. Called before a series of timed calls.
  std::function<void()> refresh = {};
};

/// A case made ready in one backend: everything that is not to be timed has been done.
struct Run {
  /// The outputs of the last window are in the case's layout: it is the one that is judged.
  /// Padded input in a varlen backend: {"op" on packed tensors, "op+layout" = unpad, operation, pad}; a backward through
  /// LibTorch's autograd: {"autograd"}; else {"op"}.
  std::vector<Window> windows;
  std::string kernel;           ///< what a dispatcher picked; empty: the backend has no choice
  Profile profile;              ///< that of the kernel picked; the declaration's unless it was a dispatcher's choice
  int64_t predicted_bytes = 0;  ///< peak of the pass, outputs included, inputs not
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const Declaration& declaration() const = 0;
  /// A sentence why the case cannot run here. Default: follows from the declared capabilities.
  virtual std::optional<std::string> why_not(const Case& c, Pass pass, const Device& device) const {
    return attnbench::why_not(declaration(), c, pass, device);
  }
  /// `inputs` outlives the run and is not to be written.
  virtual Run prepare(const Case& c, const Inputs& inputs, Pass pass) const = 0;
};

/// Every backend of this build as it is on `device`, in the order in which reports show them (backends/registry.cpp). Those
/// that do not run there are among them, and declare why.
std::vector<std::unique_ptr<Backend>> make_backends(const Device& device);

/// Backends with one defect each, named "flash_varlen:last_key_dropped", for the self-test. Where shape and mask alone prove that
/// the defect cannot show, why_not() says "equivalent: …".
std::vector<std::unique_ptr<Backend>> make_planted_backends(const Device& device);

}  // namespace attnbench
