#include "harness/worker/llama_verdict.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>

#include <fmt/format.h>

#include <ATen/ops/nonzero.h>

#include "harness/attention/error_model.hpp"
#include "harness/attention/torch_dtype.hpp"
#include "harness/run/names.hpp"
#include "harness/worker/verdict_gates.hpp"
#include "harness/worker/verdict_report.hpp"

namespace attnbench {
namespace {

/// The limits of the formulas: no layer is calibrated.
Limits limits_of(const std::string& name, Dtype dtype, const LayerYardstick& y) {
  return {&y.calibration, "llama", false, dtype, name, kVarianceFreedom};
}

/// The smallest wrong scale that the tests plant.
constexpr double kTellingGain = 0.02;

/// Of the deviation of a gain, that few draws estimated, in the place of a known one.
double factor_of_few_draws(const GateConstants& c) {
  return deviations(1, kNoiseDraws, c) / deviations(1, kInfinity, c);
}

TensorErrors errors_of(const std::string& name, const at::Tensor& got, const LayerTensor& tensor, const LayerYardstick& y) {
  const Expected& x = tensor.expected;
  const TokenShape shape{{0, x.value.size(0)}, 1, x.value.size(2)};
  const Dtype dtype = tensor.dtype;
  GateScale scale;
  scale.limits = limits_of(name, dtype, y);
  ErrorStatistics s = measure_errors({{got, &x, z_limit(shape.elements(), scale)}}, dtype).front();
  s.gain_error = std::max(s.gain_error, factor_of_few_draws(scale.limits.constants()) * tensor.gain_deviation);
  TensorErrors errors = report(shape, s);
  errors.gates = exact_gates(s);
  if (s.elements == 0) return errors;
  const ErrorStatistics ordinary = measure_errors({{tensor.ordinary, &x}}, dtype).front();
  scale.u = std::ldexp(1.0, dtype == Dtype::bf16 ? -8 : dtype == Dtype::fp16 ? -11 : -24);
  scale.emulator_rms = ordinary.rms_z;
  scale.samples = std::min(ordinary.samples, tensor.samples);
  scale.distinct = kInfinity;
  scale.telling_gain = kTellingGain;
  errors.gates.merge(error_gates(s, scale));
  return errors;
}

/// Which implementation ran is a difference that a case can name; a layer that does not know is none.
void judge_implementation(const LlamaOutputs& outputs, const LayerYardstick& y, Verdict& verdict) {
  const std::optional<Implementation> expected = y.semantics.runs ? y.semantics.runs : y.c.llama->runs;
  if (!expected || outputs.ran == expected) return;
  if (!outputs.ran)
    return fail_malformed(verdict, fmt::format("which implementation ran is not said, expected {}", find_name(*expected)));
  fail(verdict, fmt::format("{} ran, expected {}", find_name(*outputs.ran), find_name(*expected)));
}

/// Outputs of padded queries that are not 0 fail the gate "exact_zero"; those of an original have to be something else.
void judge_padded_rows(const LlamaOutputs& outputs, const LayerYardstick& y, Verdict& verdict) {
  const at::Tensor padded = at::nonzero(y.inputs.real_queries().logical_not().flatten()).flatten();
  const at::Tensor rows = outputs.out.detach().to(at::kCPU).flatten(0, 1).index_select(0, padded);
  const auto violations = rows.ne(0).sum().item<int64_t>();
  if (outputs.ran == Implementation::original) {
    if (violations == 0 && rows.numel() > 0)
      fail(verdict, "original is said to have run, and padded rows of out are 0, as patched leaves them");
    return;
  }
  verdict.errors["out"].gates["exact_zero"] = {static_cast<double>(violations), 0, rows.numel(),
                                               violations > 0 ? Gate::Verdict::fail : Gate::Verdict::pass, 0};
}

}  // namespace

Verdict judge_layer(const LlamaOutputs& outputs, Pass pass, const LayerYardstick& y) {
  Verdict verdict;
  judge_implementation(outputs, y, verdict);
  const at::Tensor queries = judged_queries(y.c, y.inputs, y.semantics);
  const std::map<std::string, at::Tensor> got = by_name(outputs);
  for (const auto& [name, tensor] : y.reference) {
    if (pass == Pass::forward && name.starts_with('d')) continue;
    const at::Tensor& output = got.at(name);
    if (name == "weights" && !y.semantics.weights) {
      if (output.defined()) fail(verdict, "weights are among the outputs, expected none");
      continue;
    }
    if (!output.defined()) {
      const std::string sentence = fmt::format("{} is missing from the outputs", name);
      name == "weights" ? fail(verdict, sentence) : fail_malformed(verdict, sentence);  // a case can name the lack of weights
      continue;
    }
    if (output.scalar_type() != torch_dtype(tensor.dtype)) {
      fail(verdict, fmt::format("{}: dtype {}, expected {}", name, c10::toString(output.scalar_type()),
                                name_of(tensor.dtype)));  // a case can name that it is cast back
      continue;
    }
    const at::Tensor rows = judged_rows(name, output, queries);
    if (rows.sizes() != tensor.expected.value.sizes()) {
      fail_malformed(verdict, fmt::format("{}: {} values in {} rows, expected {} in {}", name, rows.numel(), rows.size(0),
                                          tensor.expected.value.numel(), tensor.expected.value.size(0)));
      continue;
    }
    verdict.errors[name] = errors_of(name, rows, tensor, y);
  }
  if (y.padded_rows_zero && verdict.errors.contains("out")) judge_padded_rows(outputs, y, verdict);
  for (const auto& [name, errors] : verdict.errors) apply_gates(name, errors, verdict);
  return verdict;
}

}  // namespace attnbench
