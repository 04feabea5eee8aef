// What judging compares with: attention in float64 with the variance of a correct low-precision kernel's error at every element.
// Formulas: harness/attention/error_model.hpp. The oracles share no code with anything judged.
#pragma once

#include <memory>
#include <string_view>

#include <ATen/core/Tensor.h>

#include "harness/attention/inputs.hpp"

namespace attnbench {

/// Values and variances over the real tokens of a case, ranks as in Inputs: contiguous float64 tensors on the device of the
/// inputs.
struct Expected {
  at::Tensor value, variance;  ///< [tokens, heads, channels]
  at::Tensor allowance;        ///< the same: systematic fp32 part b of sigma (dq, dk); undefined: none
  at::Tensor freedom;          ///< [tokens, heads]: nu of each row, independent error sources
};

class Heads;
struct Group;
struct HeadProblem;

/// One oracle's answer for one case under one profile. dq, dk are end to end (reported; gated where the profile's D comes
/// from P o dP); those that depend on a kernel's own O are computed by Oracle::given_output. lse has one channel; it is -inf
/// where a query sees no key.
struct Reference {
  Expected o, lse, dq, dk, dv;
  at::Tensor sorted_scores;  ///< float64 [1, any], ascending: samples of S - m, of profiles that round P; else undefined
};

/// n_T of the tie rule: distinct scores among the samples; infinity: no ties. Waits for the device.
double distinct_scores(const Reference& reference);

struct ConditionalGradients {
  Expected dq, dk;
};

/// eigen computes on the CPU, torch on the device of the inputs; the answers lie there in both cases.
enum class OracleKind { eigen, torch };
std::string_view name_of(OracleKind kind);  ///< "eigen", "torch"

/// Float64 oracle and error model of one case under one profile. Works by heads (on a GPU several together) and in blocks of
/// query rows: memory is bounded by block x lk doubles, never lq x lk. Beside that it holds the case's tokens, in its dtype, and
/// in float64 those of a case that is small enough to be asked about at once. Not safe from several threads.
class Oracle {
 public:
  /// c and inputs outlive it. Throws std::invalid_argument for maths that the oracles do not know.
  Oracle(OracleKind kind, const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row);
  ~Oracle();

  OracleKind kind() const { return kind_; }
  Reference reference() const;
  /// dQ and dK with D = rowsum(dO o O_kernel) taken from the kernel's own O (in the case's layout, on the device of the
  /// inputs), and their variances. reference: what reference() said. Throws std::invalid_argument where the profile's D does not
  /// come from O.
  ConditionalGradients given_output(const Reference& reference, const at::Tensor& o) const;

 private:
  const OracleKind kind_;
  const Inputs& inputs_;
  const std::unique_ptr<const Heads> heads_;
  HeadProblem head_problem(const Group& group) const;

  mutable std::unique_ptr<const HeadProblem> whole_;  ///< a case that is asked about at once; null until asked for
  mutable at::Tensor of_q_, of_k_;                    ///< correlations of channels, [key heads]; undefined until asked for
};

}  // namespace attnbench
