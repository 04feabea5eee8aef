#include "harness/worker/llama_verdict.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <ATen/ops/nonzero.h>

#include "harness/attention/error_model.hpp"
#include "harness/attention/torch_dtype.hpp"
#include "harness/worker/verdict_gates.hpp"
#include "harness/worker/verdict_report.hpp"

namespace attnbench {
namespace {

/// Of the standard deviation of a gain that few draws estimated: 16 of them may say a third too little.
constexpr double kFewDraws = 1.5;

/// The limits of the formulas: no layer is calibrated.
Limits limits_of(const std::string& name, Dtype dtype, const LayerYardstick& y) {
  return {&y.calibration, "llama", false, dtype, name};
}

TensorErrors errors_of(const std::string& name, const at::Tensor& got, const LayerTensor& tensor, const LayerYardstick& y) {
  const Expected& x = tensor.expected;
  const TokenShape shape{{0, x.value.size(0)}, 1, x.value.size(2)};
  const Dtype dtype = tensor.dtype;
  const Limits limits = limits_of(name, dtype, y);
  const double limit = z_limit(shape.elements(), limits);
  ErrorStatistics s = measure_errors(got, x, dtype, limit);
  s.gain_error = std::max(s.gain_error, kFewDraws * tensor.gain_deviation);
  TensorErrors errors = report(got, x.value, shape, s);
  errors.gates = exact_gates(s);
  if (s.elements == 0) return errors;
  const ErrorStatistics ordinary = measure_errors(tensor.ordinary, x, dtype, kInfinity);
  GateScale scale;
  scale.limits = limits;
  scale.u = std::ldexp(1.0, dtype == Dtype::bf16 ? -8 : dtype == Dtype::fp16 ? -11 : -24);
  scale.emulator_rms = ordinary.rms_z;
  scale.samples = effective_samples(ordinary.row_energy, x.freedom);
  scale.distinct = kInfinity;
  errors.gates.merge(error_gates(s, scale));
  return errors;
}

/// Outputs of padded queries that are not 0 fail the gate "exact_zero".
void judge_padded_rows(const at::Tensor& out, const LayerYardstick& y, Verdict& verdict) {
  const at::Tensor padded = at::nonzero(y.inputs.real_queries().logical_not().flatten()).flatten();
  const at::Tensor rows = out.detach().to(at::kCPU).flatten(0, 1).index_select(0, padded);
  const auto violations = rows.ne(0).sum().item<int64_t>();
  verdict.errors["out"].gates["exact_zero"] = {static_cast<double>(violations), 0, rows.numel(),
                                               violations > 0 ? Gate::Verdict::fail : Gate::Verdict::pass, 0};
}

}  // namespace

Verdict judge_layer(const LlamaOutputs& outputs, Pass pass, const LayerYardstick& y) {
  Verdict verdict;
  const std::map<std::string, at::Tensor> got = by_name(outputs);
  for (const auto& [name, tensor] : y.reference) {
    if (pass == Pass::forward && name.starts_with('d')) continue;
    const at::Tensor& output = got.at(name);
    if (!output.defined()) {
      fail_malformed(verdict, fmt::format("{} is missing from the outputs", name));
      continue;
    }
    if (output.scalar_type() != torch_dtype(tensor.dtype)) {
      fail_malformed(verdict,
                     fmt::format("{}: dtype {}, expected {}", name, c10::toString(output.scalar_type()), name_of(tensor.dtype)));
      continue;
    }
    const at::Tensor rows = judged_rows(name, output, y.inputs);
    if (rows.sizes() != tensor.expected.value.sizes()) {
      fail_malformed(verdict, fmt::format("{}: {} values in {} rows, expected {} in {}", name, rows.numel(), rows.size(0),
                                          tensor.expected.value.numel(), tensor.expected.value.size(0)));
      continue;
    }
    verdict.errors[name] = errors_of(name, rows, tensor, y);
  }
  if (y.padded_rows_zero && verdict.errors.contains("out")) judge_padded_rows(outputs.out, y, verdict);
  for (const auto& [name, errors] : verdict.errors) apply_gates(name, errors, verdict);
  return verdict;
}

}  // namespace attnbench
