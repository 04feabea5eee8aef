// The yardstick: attention in float64 with the variance of a correct low-precision kernel's error at every element.
// Formulas: harness/attention/error_model.hpp. The oracles share no code with anything judged.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "harness/attention/inputs.hpp"
#include "harness/run/record.hpp"

namespace attnbench {

/// Values and standard deviations over the real tokens of a case, ranks as in Inputs: [token][head][channel], float64.
struct Expected {
  std::vector<double> value;
  std::vector<double> variance;
  std::vector<double> allowance;  ///< systematic fp32 part b of sigma (dq, dk); empty: none
  std::vector<double> freedom;    ///< nu of each (token, head) row: independent error sources
};

/// One oracle's answer for one case under one profile. dq, dk are end to end (reported; gated where the profile's D comes
/// from P o dP); dq_given_o, dk_given_o depend on a kernel's own O and are computed by Reference::given_output.
struct Reference {
  Expected o, lse, dq, dk, dv;
  double distinct_scores = 0;  ///< n_T of the tie rule; infinity: no ties
  bool has_power = true;       ///< eager profile: rounding S is a small, independent error
  std::string oracle;          ///< "eigen" or "torch"
};

struct ConditionalGradients {
  Expected dq, dk;
};

enum class OracleKind { eigen, torch };

/// Float64 oracle and error model. Works head by head and in blocks of query rows: memory is bounded by
/// block x lk doubles, never lq x lk.
Reference make_reference(OracleKind kind, const Case& c, const Inputs& inputs, const Profile& profile,
                         const Conventions& conventions);

/// dQ and dK with D = rowsum(dO o O_kernel) taken from the kernel's own O (in the case's layout), and their variances.
ConditionalGradients given_output(OracleKind kind, const Case& c, const Inputs& inputs, const Profile& profile,
                                  const Conventions& conventions, const Reference& reference, const at::Tensor& o);

}  // namespace attnbench
