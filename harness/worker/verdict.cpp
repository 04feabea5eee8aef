#include "harness/worker/verdict.hpp"

#include <algorithm>
#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/where.h>

#include "harness/attention/tokens.hpp"
#include "harness/worker/describe_failure.hpp"
#include "harness/worker/dropout_gates.hpp"
#include "harness/worker/field_rules.hpp"
#include "harness/worker/spending.hpp"
#include "harness/worker/verdict_gates.hpp"
#include "harness/worker/verdict_report.hpp"
#include "harness/worker/verdict_statistics.hpp"

namespace attnbench {
namespace {

OutputForm form_of(const JudgedTensor& t, const Yardstick& yardstick) {
  const Inputs& inputs = yardstick.inputs();
  OutputForm form{(t.over_keys ? inputs.k : inputs.q).sizes().vec(), inputs.q.scalar_type(), inputs.q.device()};
  form.sizes.back() = yardstick.shape(t).channels;
  return form;
}

OutputForm form_of_lse(const Yardstick& yardstick) {
  const at::Tensor& q = yardstick.inputs().q;
  OutputForm form{q.sizes().vec(), at::kFloat, q.device()};
  form.sizes.pop_back();
  return form;
}

/// gated_as: as Yardstick::scale() knows it.
FailureContext context_of(const Yardstick& y, const JudgedTensor& t, const std::string& gated_as, double limit) {
  const double emulator_rms = y.gates(gated_as) ? y.scale(t, gated_as).emulator_rms : 0;
  return {y.rounding().dtype, limit, emulator_rms, t.over_keys ? 1 : y.test_case().problem.group(), t.over_keys};
}

/// A tensor, as what it is judged, and what it is held against.
struct Claim {
  const JudgedTensor* tensor;
  std::string name;  ///< the tensor's, or that with "_given_o"
  Compared compared;
  bool given_o() const { return name != tensor->name; }
};

/// Those of the pass that are well formed. What is not is the first that the verdict tells, whatever is wrong with the others.
std::vector<Claim> claims_of(const Yardstick& y, const Outputs& outputs, Pass pass, Verdict& verdict) {
  std::vector<Claim> claims;
  for (const JudgedTensor* t : {&kOutput, &kQueryGradient, &kKeyGradient, &kValueGradient}) {
    if (pass == Pass::forward && t != &kOutput) break;
    if (const auto sentence = malformed(t->name, outputs.*t->tensor, form_of(*t, y))) {
      fail_malformed(verdict, *sentence);
      continue;
    }
    // Else end to end, and gated given O.
    const double limit = y.gates(t->name) ? z_limit(y.shape(*t).elements(), y.scale(*t, t->name)) : kInfinity;
    claims.push_back({t, t->name, {y.tokens(*t, outputs), &y.expected(*t), limit}});
  }
  return claims;
}

/// dq and dk once more, given the kernel's own O.
void add_given_output(const Yardstick& y, const ConditionalGradients& given, std::vector<Claim>& claims) {
  for (size_t i = 0, plain = claims.size(); i < plain; ++i) {
    const JudgedTensor* t = claims[i].tensor;
    if (t != &kQueryGradient && t != &kKeyGradient) continue;
    const std::string name = std::string(t->name) + "_given_o";
    const double limit = z_limit(y.shape(*t).elements(), y.scale(*t, name));
    claims.push_back({t, name, {claims[i].compared.got, t == &kQueryGradient ? &given.dq : &given.dk, limit}});
  }
}

std::vector<Compared> compared_of(const std::vector<Claim>& claims) {
  std::vector<Compared> compared;
  for (const Claim& claim : claims) compared.push_back(claim.compared);
  return compared;
}

/// Errors and gates.
TensorErrors errors_of_claim(const Yardstick& y, const Claim& claim, const ErrorStatistics& statistics) {
  TensorErrors errors = report(y.shape(*claim.tensor), statistics);
  errors.gates = exact_gates(statistics);
  if (!y.gates(claim.name) || statistics.elements == 0) return errors;
  GateScale scale = y.scale(*claim.tensor, claim.name);
  if (claim.given_o()) scale.allowance = statistics.allowance;
  errors.gates.merge(error_gates(statistics, scale));
  return errors;
}

}  // namespace

Judge::Judge(std::shared_ptr<const Yardstick> yardstick, const Conventions& conventions)
    : yardstick_(std::move(yardstick)), conventions_(conventions) {}

/// dQ, dK and dV of padding are 0 whatever the backend leaves in padded rows of O: dO is 0 there and nobody sees those keys,
/// unless a query without keys spreads over all that are stored.
bool Judge::padding_is_zero(const JudgedTensor& t) const {
  if (conventions_.padded_rows_zero || &t == &kQueryGradient) return true;
  return t.over_keys && !(conventions_.empty_row == Conventions::EmptyRow::uniform && yardstick_->has_empty_rows());
}

void Judge::judge_tensors(const Outputs& outputs, Pass pass, Verdict& verdict) const {
  const Yardstick& y = *yardstick_;
  const Dtype dtype = y.rounding().dtype;
  std::vector<Claim> claims = claims_of(y, outputs, pass, verdict);
  const std::vector<FieldErrors> by_field = field_errors(compared_of(claims), dtype, field_tolerances(dtype));
  ConditionalGradients given;
  const auto is_claimed = [&](const JudgedTensor* t) { return std::ranges::count(claims, t, &Claim::tensor) > 0; };
  if (y.rounding().conditional() && is_claimed(&kOutput) && is_claimed(&kQueryGradient) && is_claimed(&kKeyGradient)) {
    given = y.given(outputs.o);
    add_given_output(y, given, claims);
  }
  const std::vector<ErrorStatistics> all = measure_errors(compared_of(claims), dtype, y.only_outputs_rounded());
  for (size_t i = 0; i < claims.size(); ++i) {
    const auto& [t, name, compared] = claims[i];
    const TokenShape s = y.shape(*t);
    TensorErrors errors = errors_of_claim(y, claims[i], all[i]);
    if (!claims[i].given_o()) {
      errors.field_rules = field_rules(name, by_field[i], y.eager_error(*t));
      const SequenceLengths& lengths = y.inputs().lengths;
      if (!y.padding(*t).empty() && padding_is_zero(*t))
        judge_padding(name, outputs.*t->tensor, y.padding(*t), t->over_keys ? lengths.k_pitch : lengths.q_pitch, s, errors,
                      verdict);
    }
    apply_gates(name, errors, verdict);
    if (has_failed(errors))
      errors.failure = describe_failure(compared.got, *compared.expected, s, all[i], context_of(y, *t, name, compared.z_limit));
    verdict.errors[name] = std::move(errors);
  }
}

void Judge::judge_lse(const Outputs& outputs, Verdict& verdict) const {
  if (conventions_.lse_empty == Conventions::LseEmpty::none) return;
  if (!outputs.lse.defined())
    return fail_malformed(verdict, "lse is missing from the outputs, and the backend's conventions do not say `none`");
  if (const auto sentence = malformed("lse", outputs.lse, form_of_lse(*yardstick_))) return fail_malformed(verdict, *sentence);
  const Yardstick& y = *yardstick_;
  const TokenShape s{y.shape(kOutput).offsets, y.shape(kOutput).heads, 1};
  const std::vector<int64_t>&rows = y.rows(kOutput), &padding = y.padding(kOutput);
  const at::Tensor got = tokens_of(outputs.lse, rows, s.heads, 1);
  Expected x = y.reference().lse;
  if (y.has_empty_rows()) x.value = at::where(x.value == -kInfinity, lse_of_empty_row(conventions_.lse_empty), x.value);
  const Limits limits = y.limits("lse");
  const double limit = lse_limit(s.elements(), limits);
  const ErrorStatistics statistics = measure_errors({{got, &x, limit}}, Dtype::fp32).front();
  TensorErrors errors = report(s, statistics);
  errors.gates = exact_gates(statistics);
  if (statistics.elements > 0) errors.gates.merge(lse_gates(statistics, limits));
  if (!padding.empty() && rows_of(outputs.lse, padding, s.heads, 1).isnan().any().item<bool>())
    fail(verdict, "lse: a padded row is NaN: it was not written");
  apply_gates("lse", errors, verdict);
  const FailureContext context{Dtype::fp32, limit, 0, y.test_case().problem.group(), false};
  if (has_failed(errors)) errors.failure = describe_failure(got, x, s, statistics, context);
  verdict.errors["lse"] = std::move(errors);
}

void Judge::judge_mask(const Outputs& outputs, Verdict& verdict) const {
  const Yardstick& y = *yardstick_;
  if (const auto sentence = malformed_mask(y.test_case(), y.inputs(), outputs.kept)) return fail_malformed(verdict, *sentence);
  if (!outputs.kept.defined()) return;
  if (!at::equal(outputs.kept, y.inputs().kept))
    return fail(verdict, "kept: another mask than that of an earlier call with the same seed");
  const double false_alarms = y.limits("o").constants().false_alarms;
  DropoutGates mask = dropout_gates(y.test_case(), y.inputs(), y.empty_row(), false_alarms);
  TensorErrors& errors = verdict.errors["kept"];
  errors.elements = mask.gates.at("share").n;
  errors.gates = std::move(mask.gates);
  if (!mask.reason.empty()) fail(verdict, mask.reason);
}

Verdict Judge::judge(const Outputs& outputs, Pass pass) const {
  const SpendingScope gates(Expense::gates);
  Verdict verdict;
  if (!yardstick_->finite()) {
    verdict.status = Status::mistrusted;
    verdict.reason = "the oracle's own answer is not finite: nothing can be judged by it";
    return verdict;
  }
  judge_mask(outputs, verdict);
  // Gradients are judged given the kernel's own O, and that O with them: a wrong O must not excuse them.
  judge_tensors(outputs, pass, verdict);
  if (pass == Pass::forward) judge_lse(outputs, verdict);
  return verdict;
}

std::vector<Difference> compare_outputs(const Case& c, const Inputs& inputs, const std::string& tensor,
                                        const std::vector<at::Tensor>& outputs) {
  const Problem& p = c.problem;
  const bool over_keys = tensor == "dk" || tensor == "dv";
  const int64_t channels = tensor == "lse" ? 1 : tensor == "o" || tensor == "dv" ? p.dv : p.d;
  std::vector<at::Tensor> tokens;
  for (const at::Tensor& output : outputs)
    tokens.push_back(tokens_of(output, over_keys ? inputs.k_rows : inputs.q_rows, over_keys ? p.hkv : p.hq, channels));
  std::vector<Difference> differences = differences_of(tokens);
  for (Difference& difference : differences) difference.tensor = tensor;
  return differences;
}

}  // namespace attnbench
