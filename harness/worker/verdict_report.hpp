// From statistics and gates to the sentences and numbers of a verdict.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "harness/worker/verdict.hpp"
#include "harness/worker/verdict_statistics.hpp"

namespace attnbench {

/// What a judged tensor must look like.
struct OutputForm {
  std::vector<int64_t> sizes;
  at::ScalarType dtype = at::kFloat;
  c10::Device device = at::kCPU;
};

/// A sentence if the tensor is missing, or has another shape, dtype or device.
std::optional<std::string> malformed(const std::string& name, const at::Tensor& got, const OutputForm& form);

/// Makes the verdict `failed`; keeps the first sentence.
void fail(Verdict& verdict, std::string sentence);
void fail_malformed(Verdict& verdict, std::string sentence);

/// What the record says about a tensor's errors, gates and field rules apart.
TensorErrors report(const TokenShape& shape, const ErrorStatistics& s);

/// Does a gate of this tensor fail?
bool has_failed(const TensorErrors& errors);

/// Turns the gates of a tensor into the verdict: a failed gate fails it.
void apply_gates(const std::string& name, const TensorErrors& errors, Verdict& verdict);

/// Rows without a real token that are known to be 0 are 0 to the last bit, else the gate "exact_zero" of `errors` fails.
/// padding: those storage rows; pitch: rows of one sequence, 0 in packed tensors.
void judge_padding(const std::string& name, const at::Tensor& tensor, const std::vector<int64_t>& padding, int64_t pitch,
                   const TokenShape& shape, TensorErrors& errors, Verdict& verdict);

}  // namespace attnbench
