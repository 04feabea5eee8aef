// Judges one backend's outputs of one pass: the five gates of the rule, per tensor.
#pragma once

#include <map>
#include <string>

#include "harness/attention/reference.hpp"
#include "harness/run/record.hpp"

namespace attnbench {

struct Verdict {
  Status status =
      Status::passed;      ///< passed, failed or mistrusted (no gate of some tensor had power, or the reference is not finite)
  std::string reason;      ///< a sentence unless passed: tensor, gate, value, limit, where
  bool malformed = false;  ///< an output is missing, or has another shape or dtype
  std::map<std::string, TensorErrors> errors;
};

/// Everything about a case that does not depend on who is judged: computed once, shared by all backends with the same
/// profile and conventions. Holds the reference, the emulator's statistics and eager's errors for the field's rule.
class Judge {
 public:
  Judge(const Case& c, const Inputs& inputs, const Profile& profile, const Conventions& conventions, OracleKind oracle);
  ~Judge();
  Judge(Judge&&) noexcept;

  /// forward: o and lse of `outputs`. backward: dq, dk, dv, and o of the same run, on which they are conditional.
  Verdict judge(const Outputs& outputs, Pass pass) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// max abs and rel-L2 difference of two backends over the real tokens of a case.
Difference compare_outputs(const Case& c, const Inputs& inputs, const std::string& tensor, const at::Tensor& a,
                           const at::Tensor& b);

}  // namespace attnbench
