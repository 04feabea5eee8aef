#include "harness/worker/verdict_report.hpp"

#include <algorithm>
#include <utility>

#include <ATen/TensorOperators.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/attention/tokens.hpp"
#include "harness/run/tensor_failure.hpp"

namespace attnbench {
std::optional<std::string> malformed(const std::string& name, const at::Tensor& got, const OutputForm& form) {
  if (!got.defined()) return fmt::format("{} is missing from the outputs", name);
  if (got.sizes() != at::IntArrayRef(form.sizes))
    return fmt::format("{} has the shape [{}], expected [{}]", name, fmt::join(got.sizes().vec(), ", "),
                       fmt::join(form.sizes, ", "));
  if (got.scalar_type() != form.dtype)
    return fmt::format("{} has the dtype {}, expected {}", name, c10::toString(got.scalar_type()), c10::toString(form.dtype));
  if (got.device() != form.device)
    return fmt::format("{} is on {}, expected on {} as the inputs", name, got.device().str(), form.device.str());
  return std::nullopt;
}

void fail(Verdict& verdict, std::string sentence) {
  if (verdict.status != Status::failed) verdict.reason = std::move(sentence);
  verdict.status = Status::failed;
}

void fail_malformed(Verdict& verdict, std::string sentence) {
  fail(verdict, std::move(sentence));
  verdict.malformed = true;
}

TensorErrors report(const TokenShape& shape, const ErrorStatistics& s) {
  TensorErrors e;
  e.max_abs = s.max_abs;
  e.rel_l2 = s.rel_l2;
  e.cosine = s.cosine;
  e.max_z = s.max_z;
  e.elements = shape.elements();
  e.bad = s.beyond_limit + s.nonfinite_mismatches + s.exact_violations;
  if (s.first_bad) e.first_bad = shape.element(*s.first_bad);
  if (s.worst) {
    e.worst = shape.element(*s.worst);
    e.worst_got = s.worst_got;
    e.worst_expected = s.worst_expected;
  }
  return e;
}

bool has_failed(const TensorErrors& errors) {
  return std::any_of(errors.gates.begin(), errors.gates.end(),
                     [](const auto& named) { return named.second.verdict == Gate::Verdict::fail; });
}

void apply_gates(const std::string& name, const TensorErrors& errors, Verdict& verdict) {
  for (const char* gate_name : {"nonfinite", "exact_zero", "z", "rms", "lse", "bias"}) {  // the plainest fault is told
    const auto found = errors.gates.find(gate_name);
    if (found == errors.gates.end() || found->second.verdict != Gate::Verdict::fail) continue;
    const Gate& gate = found->second;
    const std::string where = errors.worst
                                  ? fmt::format("; worst at {}: got {:.9g}, expected {:.9g}",
                                                element_place(name, *errors.worst, " "), errors.worst_got, errors.worst_expected)
                                  : "";
    fail(verdict, fmt::format("{}: gate {} is {:.4g}, its limit {:.4g}, over {} values{}", name, gate_name, gate.value,
                              gate.limit, gate.n, where));
  }
}

void judge_padding(const std::string& name, const at::Tensor& tensor, const std::vector<int64_t>& padding, int64_t pitch,
                   const TokenShape& shape, TensorErrors& errors, Verdict& verdict) {
  const at::Tensor got = tokens_of(tensor, padding, shape.heads, shape.channels).flatten();
  const at::Tensor wrong = got != 0;
  const int64_t violations = wrong.sum().item<int64_t>();
  Gate& gate = errors.gates["exact_zero"];
  gate.n += got.numel();
  if (violations == 0) return;
  const int64_t at = wrong.to(at::kByte).argmax().item<int64_t>(), row_size = shape.heads * shape.channels;
  const int64_t row = padding[at / row_size], within = at % row_size;
  const std::string place =
      pitch > 0 ? fmt::format("sequence {} head {} padded position {}", row / pitch, within / shape.channels, row % pitch)
                : fmt::format("row {} head {}, behind the last sequence,", row, within / shape.channels);
  if (gate.value == 0)
    fail(verdict, fmt::format("{}: a padded row must be 0 and holds {:.9g} at {} channel {}", name, got[at].item<double>(), place,
                              within % shape.channels));
  gate.value += static_cast<double>(violations);
  gate.verdict = Gate::Verdict::fail;
  errors.bad += violations;
}

}  // namespace attnbench
