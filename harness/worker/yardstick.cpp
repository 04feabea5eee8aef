#include "harness/worker/yardstick.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/stack.h>

#include "harness/attention/emulator.hpp"
#include "harness/attention/fills.hpp"
#include "harness/attention/tokens.hpp"
#include "harness/worker/spending.hpp"

namespace attnbench {
namespace {

constexpr const JudgedTensor* kAllJudged[] = {&kOutput, &kQueryGradient, &kKeyGradient, &kValueGradient};

Oracle timed_oracle(OracleKind kind, const Case& c, const Inputs& inputs, const Profile& profile,
                    Conventions::EmptyRow empty_row) {
  const SpendingScope scope(Expense::oracle);
  return {kind, c, inputs, profile, empty_row};
}

Reference timed_reference(const Oracle& oracle) {
  const SpendingScope scope(Expense::oracle);
  return oracle.reference();
}

std::vector<int64_t> other_rows(const std::vector<int64_t>& rows, int64_t storage_rows) {
  std::vector<bool> is_among(storage_rows, false);
  for (const int64_t row : rows) is_among[row] = true;
  std::vector<int64_t> others;
  for (int64_t row = 0; row < storage_rows; ++row)
    if (!is_among[row]) others.push_back(row);
  return others;
}

}  // namespace

const Profile& eager_profile() {
  static const Profile eager{.name = "eager",
                             .p = Profile::Probabilities::normalised,
                             .rounds_ds = true,
                             .rounds_scores = true,
                             .d = Profile::RowSum::from_p_dp,
                             .rounds_gqa_partials = true};
  return eager;
}

Yardstick::Yardstick(const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row,
                     OracleKind oracle, Outputs eager, const Calibration& calibration, int64_t kept_bytes)
    : c_(c),
      inputs_(inputs),
      profile_(profile),
      empty_row_(empty_row),
      calibration_(calibration),
      rounding_(rounding_of(profile, c.problem)),
      eager_(std::move(eager)),
      oracle_(timed_oracle(oracle, c_, inputs_, profile, empty_row)),
      reference_(timed_reference(oracle_)),
      q_padding_(other_rows(inputs.q_rows, inputs.q_storage_rows())),
      k_padding_(other_rows(inputs.k_rows, inputs.k_storage_rows())),
      kept_bytes_(kept_bytes) {
  const SpendingScope emulator(Expense::emulator);
  const bool is_eager = rounding_ == rounding_of(eager_profile(), c.problem);
  const Outputs emulated = is_eager ? eager_ : emulate(c, inputs, profile, empty_row);
  // Where they do not depend on an implementation's own O: the reference's.
  const ConditionalGradients gradients = rounding_.conditional() ? conditional_gradients(emulated.o)
                                                                 : ConditionalGradients{.dq = reference_.dq, .dk = reference_.dk};
  inspect_reference();  // waits: all that is large is under way
  const char* given_o = rounding_.conditional() ? "_given_o" : "";
  note_ordinary(emulated, {{&kOutput, "o", &reference_.o},
                           {&kValueGradient, "dv", &reference_.dv},
                           {&kQueryGradient, std::string("dq") + given_o, &gradients.dq},
                           {&kKeyGradient, std::string("dk") + given_o, &gradients.dk}});
  std::vector<Compared> eager_tokens;
  for (const JudgedTensor* t : kAllJudged) eager_tokens.push_back({tokens(*t, eager_), &expected(*t)});
  const std::vector<FieldErrors> errors = field_errors(eager_tokens, c.problem.dtype, {});
  for (size_t i = 0; i < errors.size(); ++i) eager_error_[kAllJudged[i]->name] = errors[i].max_abs;
}

bool Yardstick::holds_for(Conventions::EmptyRow empty_row, const at::Tensor& kept) const {
  if (kept.defined() && !at::equal(kept, inputs_.kept)) return false;
  return empty_row == empty_row_ || !has_empty_rows_;
}

bool Yardstick::holds_for(const Profile& profile, Conventions::EmptyRow empty_row, OracleKind oracle,
                          const at::Tensor& kept) const {
  return holds_for(empty_row, kept) && oracle == oracle_.kind() && rounding_of(profile, c_.problem) == rounding_;
}

const Expected& Yardstick::expected(const JudgedTensor& t) const {
  if (&t == &kOutput) return reference_.o;
  return &t == &kQueryGradient ? reference_.dq : &t == &kKeyGradient ? reference_.dk : reference_.dv;
}

TokenShape Yardstick::shape(const JudgedTensor& t) const {
  const Problem& p = c_.problem;
  return {offsets_of(t.over_keys ? inputs_.lengths.k : inputs_.lengths.q), t.over_keys ? p.hkv : p.hq,
          t.value_channels ? p.dv : p.d};
}

at::Tensor Yardstick::tokens(const JudgedTensor& t, const Outputs& outputs) const {
  const TokenShape s = shape(t);
  return tokens_of(outputs.*t.tensor, rows(t), s.heads, s.channels);
}

GateScale Yardstick::scale(const JudgedTensor& t, const std::string& gated_as) const {
  GateScale s;
  s.limits = limits(gated_as);
  s.u = rounding_.u;
  s.terms = static_cast<double>(t.over_keys ? inputs_.lengths.max_q() * c_.problem.group() : inputs_.lengths.max_k());
  s.emulator_rms = ordinary_.at(gated_as).rms;
  if (rounding_.p) s.emulator_z = ordinary_.at(gated_as).max_z;
  if (rounding_.p) s.emulator_gain = ordinary_.at(gated_as).gain;
  if (c_.fill == Fill::deep_negative) {
    // The float32 sums of Q K^T err as much as the dtype rounds, and by their order: not as the emulator's.
    s.emulator_rms = std::max(s.emulator_rms, 1.0);
    const double size = std::abs(inputs_.scale) * kDeepNegative * kDeepNegative;
    if (rounding_.p) s.huge_scores = static_cast<double>(c_.problem.d) * size;
  }
  s.samples = ordinary_.at(gated_as).samples;
  s.distinct = ordinary_.at(gated_as).distinct;
  if (&t == &kOutput) s.distinct = std::min(s.distinct, distinct_scores_);
  s.only_outputs_rounded = only_outputs_rounded();
  if (c_.problem.dropout.p > 0) s.same_gain = rounding_.e;
  return s;
}

Limits Yardstick::limits(const std::string& tensor) const {
  return {&calibration_, calibrated_as(profile_, c_.problem), has_large_scores(c_), c_.problem.dtype, calibrated_tensor(tensor)};
}

bool Yardstick::only_outputs_rounded() const {
  const bool inside = rounding_.p || rounding_.ds || rounding_.scores || rounding_.gqa_partials;
  return c_.problem.dtype != Dtype::fp32 && !inside;
}

void Yardstick::note_ordinary(const Outputs& emulated, const std::vector<Gated>& all) {
  std::vector<const Expected*> values;
  std::vector<Compared> compared;
  for (const Gated& gated : all) {
    values.push_back(gated.against);
    compared.push_back({tokens(*gated.tensor, emulated), gated.against});
  }
  const std::vector<double> distinct = distinct_values(values);
  const std::vector<ErrorStatistics> errors = measure_errors(compared, c_.problem.dtype);
  for (size_t i = 0; i < all.size(); ++i) {
    const ErrorStatistics& s = errors[i];
    ordinary_[all[i].gated_as] = {s.rms_z, s.max_z, std::abs(s.gain), s.samples, distinct[i]};
  }
}

/// A reference that is not finite would match a NaN of whoever is judged: it is no yardstick.
void Yardstick::inspect_reference() {
  // A sum of finite numbers is finite: none of them is near the largest float64. The LSE of an empty row is -infinity.
  std::vector<at::Tensor> sums{reference_.lse.value.sum()};
  for (const JudgedTensor* t : kAllJudged) sums.push_back(expected(*t).value.sum());
  const at::Tensor host = at::stack(sums).to(at::kCPU);
  const double* sum = host.const_data_ptr<double>();
  distinct_scores_ = distinct_scores(reference_);
  has_empty_rows_ = sum[0] == -kInfinity;
  finite_ = has_empty_rows_ || std::isfinite(sum[0]);
  if (empty_row_ == Conventions::EmptyRow::nan && has_empty_rows_) return;
  finite_ = finite_ && std::all_of(sum + 1, sum + sums.size(), [](double x) { return std::isfinite(x); });
}

ConditionalGradients Yardstick::conditional_gradients(const at::Tensor& o) const {
  const SpendingScope scope(Expense::oracle);
  return oracle_.given_output(reference_, o);
}

ConditionalGradients Yardstick::given(const at::Tensor& o) const {
  for (const auto& [known, gradients] : given_)
    if (known.sizes() == o.sizes() && at::equal(known, o)) return gradients;
  const ConditionalGradients gradients = conditional_gradients(o);
  const size_t bytes = o.nbytes() + 2 * (gradients.dq.value.nbytes() + gradients.dk.value.nbytes());
  given_.emplace_back(o.clone(), gradients);
  while (given_.size() > 1 && static_cast<int64_t>(given_.size() * bytes) > kept_bytes_) given_.pop_front();
  return gradients;
}

}  // namespace attnbench
