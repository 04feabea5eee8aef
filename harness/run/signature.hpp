// What a wrong result looks like, in numbers that are alike for one mistake in many cases.
//
// Of each tensor that failed (forward: o, lse; backward: o, dq, dk, dv; gradients given O where they are judged so), all between
// -1.2 and 1.5, absent where 0; u: largest relative rounding error of the dtype
//   gate NAME   1: that gate failed
//   z           log2(max|z| / limit) / 16, at most 1         rms    log2(RMS ratio; of the lse RMS(z)) / 16, at most 1
//   bad         1 + log10(share of bad elements) / 7         rows   share of rows with a bad element
//   gain        slope of the error over the expected value   sign   its sign times log2(1 + 10 |gain| / u) / 16, at most 1
//   cosine      1 + log10(1 - cosine) / 8                    rel    log2(4 rel-L2 / u) / 26
//   density     share of bad elements in those rows
//   zeros, nonfinite    share of the bad elements that are 0, or not finite
// and the kinds of the pattern (tensor_failure.hpp).
#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>

#include "harness/run/record.hpp"

namespace attnbench {

struct TensorSignature {
  std::map<std::string, double> features;
  std::array<std::string, 4> where;  ///< kinds of the pattern: sequences, tokens, heads, channels; "none" where there is none
};

/// What of a case makes the same mistake look otherwise.
struct CaseKind {
  Mask mask = Mask::none;
  bool has_window = false, shares_heads = false;
  Dtype dtype = Dtype::bf16;
  explicit CaseKind(const std::string& case_line);
};

struct Signature {
  Signature(Pass pass, std::string case_line);
  Pass pass;
  std::string case_line;
  CaseKind kind;
  std::map<std::string, TensorSignature> tensors;  ///< those that failed
};

/// Unset where no tensor failed, or the record does not say how (an old one).
std::optional<Signature> failure_signature(const Record& record);

/// How unlike two signatures of one pass are: the sum over tensors of weighted differences, and a little for unlike cases. 0:
/// alike in everything; two results of one defect in different cases are mostly within 2.
double distance(const Signature& a, const Signature& b);

nlohmann::json to_json_signature(const Signature& signature);
Signature signature_from(const nlohmann::json& json, const std::string& path);

}  // namespace attnbench
