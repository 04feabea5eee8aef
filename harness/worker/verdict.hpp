// Judges one backend's outputs of one pass: the gates of verdict_gates.hpp, per tensor.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "harness/run/record.hpp"
#include "harness/worker/yardstick.hpp"

namespace attnbench {

struct Verdict {
  Status status = Status::passed;  ///< passed, failed or mistrusted (the reference is not finite)
  std::string reason;              ///< a sentence unless passed: tensor, gate, value, limit, where
  bool malformed = false;          ///< an output is missing, or has another shape or dtype
  std::map<std::string, TensorErrors> errors;
};

/// Judges backends of one case that share a yardstick and conventions.
class Judge {
 public:
  Judge(std::shared_ptr<const Yardstick> yardstick, const Conventions& conventions);

  /// forward: o and lse of `outputs`. backward: dq, dk, dv, and o of the same run, on which they are conditional. Either, with
  /// dropout: its mask, which has to be that of the yardstick.
  Verdict judge(const Outputs& outputs, Pass pass) const;

  const Yardstick& yardstick() const { return *yardstick_; }

 private:
  bool padding_is_zero(const JudgedTensor& t) const;
  void judge_tensors(const Outputs& outputs, Pass pass, Verdict& verdict) const;
  void judge_lse(const Outputs& outputs, Verdict& verdict) const;
  void judge_mask(const Outputs& outputs, Verdict& verdict) const;

  std::shared_ptr<const Yardstick> yardstick_;
  Conventions conventions_;
};

/// max abs and rel-L2 difference over the real tokens of a case, of one tensor of several backends: of the first and the second,
/// the first and the third, …, the second and the third, …
std::vector<Difference> compare_outputs(const Case& c, const Inputs& inputs, const std::string& tensor,
                                        const std::vector<at::Tensor>& outputs);

}  // namespace attnbench
