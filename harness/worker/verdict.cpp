#include "harness/worker/verdict.hpp"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

#include "harness/attention/emulator.hpp"
#include "harness/attention/error_model.hpp"
#include "harness/attention/tokens.hpp"
#include "harness/worker/verdict_gates.hpp"
#include "harness/worker/verdict_report.hpp"
#include "harness/worker/verdict_statistics.hpp"

namespace attnbench {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// flash-attention's rule: error <= 2 * error of eager in the same dtype + 1e-5. (Its tests allow gradients a factor of 3 by
/// now; reported is the stricter one, for every tensor.)
constexpr double kFieldFactor = 2, kFieldSlack = 1e-5;

const Profile& eager_profile() {
  static const Profile eager{.name = "eager",
                             .p = Profile::Probabilities::normalised,
                             .rounds_ds = true,
                             .rounds_scores = true,
                             .d = Profile::RowSum::from_p_dp,
                             .lazy_rescale = false,
                             .rounds_gqa_partials = true};
  return eager;
}

/// A tensor that is judged by its values: where it lies among the outputs, and its shape.
struct Judged {
  const char* name;
  at::Tensor Outputs::*tensor;
  bool over_keys;       ///< dk, dv: rows are keys
  bool value_channels;  ///< dv channels, else d
};
const Judged kOutput{"o", &Outputs::o, false, true}, kQueryGradient{"dq", &Outputs::dq, false, false},
    kKeyGradient{"dk", &Outputs::dk, true, false}, kValueGradient{"dv", &Outputs::dv, true, true};

/// What the emulator's errors are like on one tensor.
struct Ordinary {
  double rms = 0, samples = 0;
};

}  // namespace

struct Judge::State {
  Case c;
  Inputs inputs;
  Profile profile;
  Conventions conventions;
  OracleKind oracle;
  Rounding rounding;
  Reference reference;
  std::map<std::string, Ordinary> ordinary;   ///< by gated tensor: o, dv, and dq, dk or dq_given_o, dk_given_o
  std::map<std::string, double> eager_error;  ///< of o, dq, dk, dv, by the field's measure
  std::vector<int64_t> q_padding, k_padding;  ///< storage rows without a real token
  bool has_empty_rows = false;                ///< some query sees no key
  bool finite = true;                         ///< the reference is, apart from what the conventions declare

  const std::vector<int64_t>& rows(const Judged& t) const { return t.over_keys ? inputs.k_rows : inputs.q_rows; }
  TokenShape shape(const Judged& t) const;
  const Expected& expected(const Judged& t) const;
  at::Tensor tokens(const Judged& t, const Outputs& outputs) const;
  OutputForm form(const Judged& t) const;
  OutputForm lse_form() const;
  GateScale scale(const Judged& t, const std::string& gated_as) const;
  void prepare();
  void inspect_reference();
  void note_ordinary(const Judged& t, const std::string& gated_as, const Outputs& emulated, const Expected& against);

  void judge_tensor(const Judged& t, const Outputs& outputs, Verdict& verdict) const;
  void judge_given_output(const Outputs& outputs, Verdict& verdict) const;
  void judge_lse(const Outputs& outputs, Verdict& verdict) const;
  bool padding_is_zero(const Judged& t) const;
};

namespace {

std::vector<int64_t> other_rows(std::vector<int64_t> rows, int64_t storage_rows) {
  std::vector<int64_t> others;
  std::sort(rows.begin(), rows.end());
  for (int64_t row = 0; row < storage_rows; ++row)
    if (!std::binary_search(rows.begin(), rows.end(), row)) others.push_back(row);
  return others;
}

}  // namespace

TokenShape Judge::State::shape(const Judged& t) const {
  const Problem& p = c.problem;
  return {offsets_of(t.over_keys ? inputs.lengths.k : inputs.lengths.q), t.over_keys ? p.hkv : p.hq,
          t.value_channels ? p.dv : p.d};
}

const Expected& Judge::State::expected(const Judged& t) const {
  const std::string name = t.name;
  return name == "o" ? reference.o : name == "dq" ? reference.dq : name == "dk" ? reference.dk : reference.dv;
}

at::Tensor Judge::State::tokens(const Judged& t, const Outputs& outputs) const {
  const TokenShape s = shape(t);
  return tokens_of(outputs.*t.tensor, rows(t), s.heads, s.channels);
}

GateScale Judge::State::scale(const Judged& t, const std::string& gated_as) const {
  GateScale s;
  s.u = rounding.u;
  s.terms = static_cast<double>(t.over_keys ? inputs.lengths.max_q() * c.problem.group() : inputs.lengths.max_k());
  s.emulator_rms = ordinary.at(gated_as).rms;
  s.samples = ordinary.at(gated_as).samples;
  s.distinct = &t == &kOutput ? reference.distinct_scores : kInfinity;
  s.lazy_rescale = profile.lazy_rescale;
  s.eager = rounding.scores;
  s.has_power = reference.has_power;
  s.bias = !(rounding.scores && t.over_keys);
  return s;
}

void Judge::State::note_ordinary(const Judged& t, const std::string& gated_as, const Outputs& emulated, const Expected& against) {
  const ErrorStatistics s = measure_errors(tokens(t, emulated), against, c.problem.dtype, kInfinity);
  ordinary[gated_as] = {s.rms_z, effective_samples(s.row_energy, against.freedom)};
}

/// A reference that is not finite would match a NaN of whoever is judged: it is no yardstick.
void Judge::State::inspect_reference() {
  const at::Tensor& lse = reference.lse.value;
  has_empty_rows = (lse.abs() == kInfinity).any().item<bool>();
  finite = !lse.isnan().any().item<bool>();
  if (conventions.empty_row == Conventions::EmptyRow::nan && has_empty_rows) return;
  for (const Judged* t : {&kOutput, &kQueryGradient, &kKeyGradient, &kValueGradient})
    finite = finite && (expected(*t).value.abs() < kInfinity).all().item<bool>();
}

void Judge::State::prepare() {
  rounding = rounding_of(profile, c.problem, inputs.scale);
  reference = make_reference(oracle, c, inputs, profile, conventions);
  q_padding = other_rows(inputs.q_rows, inputs.q_storage_rows());
  k_padding = other_rows(inputs.k_rows, inputs.k_storage_rows());
  inspect_reference();
  const Outputs emulated = emulate(c, inputs, profile, conventions);
  note_ordinary(kOutput, "o", emulated, reference.o);
  note_ordinary(kValueGradient, "dv", emulated, reference.dv);
  if (rounding.conditional()) {
    const auto given = given_output(oracle, c, inputs, profile, conventions, reference, emulated.o);
    note_ordinary(kQueryGradient, "dq_given_o", emulated, given.dq);
    note_ordinary(kKeyGradient, "dk_given_o", emulated, given.dk);
  } else {
    note_ordinary(kQueryGradient, "dq", emulated, reference.dq);
    note_ordinary(kKeyGradient, "dk", emulated, reference.dk);
  }
  const Outputs eager = profile == eager_profile() ? emulated : emulate(c, inputs, eager_profile(), conventions);
  for (const Judged* t : {&kOutput, &kQueryGradient, &kKeyGradient, &kValueGradient})
    eager_error[t->name] = field_error(tokens(*t, eager), expected(*t), c.problem.dtype);
}

OutputForm Judge::State::form(const Judged& t) const {
  OutputForm form{(t.over_keys ? inputs.k : inputs.q).sizes().vec(), inputs.q.scalar_type(), inputs.q.device()};
  form.sizes.back() = t.value_channels ? c.problem.dv : c.problem.d;
  return form;
}

OutputForm Judge::State::lse_form() const {
  OutputForm form{inputs.q.sizes().vec(), at::kFloat, inputs.q.device()};
  form.sizes.pop_back();
  return form;
}

/// dQ, dK and dV of padding are 0 whatever the backend leaves in padded rows of O: dO is 0 there and nobody sees those keys,
/// unless a query without keys spreads over all that are stored.
bool Judge::State::padding_is_zero(const Judged& t) const {
  if (conventions.padded_rows_zero || &t == &kQueryGradient) return true;
  return t.over_keys && !(conventions.empty_row == Conventions::EmptyRow::uniform && has_empty_rows);
}

void Judge::State::judge_tensor(const Judged& t, const Outputs& outputs, Verdict& verdict) const {
  if (const auto sentence = malformed(t.name, outputs.*t.tensor, form(t))) return fail_malformed(verdict, *sentence);
  const bool gated = ordinary.count(t.name) > 0;  // else end to end, and gated given O
  const TokenShape s = shape(t);
  const Expected& x = expected(t);
  const at::Tensor got = tokens(t, outputs);
  const double limit = gated ? z_limit(s.elements(), rounding.scores) : kInfinity;
  const ErrorStatistics statistics = measure_errors(got, x, c.problem.dtype, limit);
  TensorErrors errors = report(got, x.value, s, statistics);
  errors.gates = exact_gates(statistics);
  if (gated && statistics.elements > 0) errors.gates.merge(error_gates(statistics, scale(t, t.name)));
  const double field = field_error(got, x, c.problem.dtype);
  const double field_limit = kFieldFactor * eager_error.at(t.name) + kFieldSlack;
  errors.field_rules["2x_eager"] = {field, field_limit, field <= field_limit};
  const std::vector<int64_t>& padding = t.over_keys ? k_padding : q_padding;
  if (!padding.empty() && padding_is_zero(t))
    judge_padding(t.name, outputs.*t.tensor, padding, t.over_keys ? inputs.lengths.k_pitch : inputs.lengths.q_pitch, s, errors,
                  verdict);
  apply_gates(t.name, errors, gated && statistics.elements > 0, verdict);
  verdict.errors[t.name] = std::move(errors);
}

void Judge::State::judge_given_output(const Outputs& outputs, Verdict& verdict) const {
  const auto given = given_output(oracle, c, inputs, profile, conventions, reference, outputs.o);
  for (const auto& [t, x] : {std::pair{&kQueryGradient, &given.dq}, std::pair{&kKeyGradient, &given.dk}}) {
    const std::string name = std::string(t->name) + "_given_o";
    const TokenShape s = shape(*t);
    const at::Tensor got = tokens(*t, outputs);
    const ErrorStatistics statistics = measure_errors(got, *x, c.problem.dtype, z_limit(s.elements(), rounding.scores));
    TensorErrors errors = report(got, x->value, s, statistics);
    GateScale gate_scale = scale(*t, name);
    gate_scale.allowance = statistics.allowance;
    errors.gates = exact_gates(statistics);
    if (statistics.elements > 0) errors.gates.merge(error_gates(statistics, gate_scale));
    apply_gates(name, errors, statistics.elements > 0, verdict);
    verdict.errors[name] = std::move(errors);
  }
}

void Judge::State::judge_lse(const Outputs& outputs, Verdict& verdict) const {
  if (conventions.lse_empty == Conventions::LseEmpty::none) return;
  if (!outputs.lse.defined())
    return fail_malformed(verdict, "lse is missing from the outputs, and the backend's conventions do not say `none`");
  if (const auto sentence = malformed("lse", outputs.lse, lse_form())) return fail_malformed(verdict, *sentence);
  const TokenShape s{offsets_of(inputs.lengths.q), c.problem.hq, 1};
  const at::Tensor got = tokens_of(outputs.lse, inputs.q_rows, s.heads, 1);
  const ErrorStatistics statistics = measure_errors(got, reference.lse, Dtype::fp32, lse_limit());
  TensorErrors errors = report(got, reference.lse.value, s, statistics);
  errors.gates = exact_gates(statistics);
  if (statistics.elements > 0) errors.gates["lse"] = lse_gate(statistics);
  if (!q_padding.empty() && rows_of(outputs.lse, q_padding, s.heads, 1).isnan().any().item<bool>())
    fail(verdict, "lse: a padded row is NaN: it was not written");
  apply_gates("lse", errors, statistics.elements > 0, verdict);
  verdict.errors["lse"] = std::move(errors);
}

Judge::Judge(const Case& c, const Inputs& inputs, const Profile& profile, const Conventions& conventions, OracleKind oracle)
    : state_(std::make_unique<State>()) {
  state_->c = c;
  state_->inputs = inputs;
  state_->profile = profile;
  state_->conventions = conventions;
  state_->oracle = oracle;
  state_->prepare();
}

Judge::~Judge() = default;
Judge::Judge(Judge&&) noexcept = default;

Verdict Judge::judge(const Outputs& outputs, Pass pass) const {
  const State& s = *state_;
  Verdict verdict;
  if (!s.finite) {
    verdict.status = Status::mistrusted;
    verdict.reason = "the oracle's own answer is not finite: nothing can be judged by it";
    return verdict;
  }
  // Gradients are judged given the kernel's own O only after that O was: a wrong O must not excuse them.
  s.judge_tensor(kOutput, outputs, verdict);
  if (pass == Pass::forward) {
    s.judge_lse(outputs, verdict);
    return verdict;
  }
  for (const Judged* t : {&kQueryGradient, &kKeyGradient, &kValueGradient}) s.judge_tensor(*t, outputs, verdict);
  const bool complete = verdict.errors.count("o") && verdict.errors.count("dq") && verdict.errors.count("dk");
  if (s.rounding.conditional() && complete) s.judge_given_output(outputs, verdict);
  return verdict;
}

Difference compare_outputs(const Case& c, const Inputs& inputs, const std::string& tensor, const at::Tensor& a,
                           const at::Tensor& b) {
  const Problem& p = c.problem;
  const bool over_keys = tensor == "dk" || tensor == "dv";
  const int64_t channels = tensor == "lse" ? 1 : tensor == "o" || tensor == "dv" ? p.dv : p.d;
  const int64_t heads = over_keys ? p.hkv : p.hq;
  const std::vector<int64_t>& rows = over_keys ? inputs.k_rows : inputs.q_rows;
  Difference difference = difference_of(tokens_of(a, rows, heads, channels), tokens_of(b, rows, heads, channels));
  difference.tensor = tensor;
  return difference;
}

}  // namespace attnbench
