#include "harness/worker/verdict.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/attention/emulator.hpp"
#include "harness/attention/error_model.hpp"
#include "harness/attention/tokens.hpp"
#include "harness/worker/verdict_gates.hpp"
#include "harness/worker/verdict_statistics.hpp"

namespace attnbench {
namespace {

/// flash-attention's rule: error <= factor * error of eager in the same dtype + 1e-5.
constexpr double kFieldFactorOutput = 2, kFieldFactorGradient = 3, kFieldSlack = 1e-5;

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
  std::vector<double> tokens(const Judged& t, const Outputs& outputs) const;
  GateScale scale(const Judged& t, const std::string& gated_as) const;
  void prepare();
  void inspect_reference();
  void note_ordinary(const Judged& t, const std::string& gated_as, const Outputs& emulated, const Expected& against);

  std::optional<std::string> malformed(const Judged& t, const Outputs& outputs) const;
  std::optional<std::string> malformed_lse(const Outputs& outputs) const;
  void judge_tensor(const Judged& t, const Outputs& outputs, Verdict& verdict) const;
  void judge_given_output(const Outputs& outputs, Verdict& verdict) const;
  void judge_lse(const Outputs& outputs, Verdict& verdict) const;
  bool padding_is_zero(const Judged& t) const;
  void judge_padding(const Judged& t, const Outputs& outputs, TensorErrors& errors, Verdict& verdict) const;
  TensorErrors report(const std::vector<double>& got, const Expected& expected, const TokenShape& shape,
                      const ErrorStatistics& s) const;
};

namespace {

std::vector<int64_t> other_rows(std::vector<int64_t> rows, int64_t storage_rows) {
  std::vector<int64_t> others;
  std::sort(rows.begin(), rows.end());
  for (int64_t row = 0; row < storage_rows; ++row)
    if (!std::binary_search(rows.begin(), rows.end(), row)) others.push_back(row);
  return others;
}

std::string describe(const Element& e) {
  return fmt::format("sequence {} head {} token {} channel {}", e[0], e[1], e[2], e[3]);
}

/// Keeps the first sentence and the worst status.
void fail(Verdict& verdict, std::string sentence) {
  if (verdict.status != Status::failed) verdict.reason = std::move(sentence);
  verdict.status = Status::failed;
}

void fail_malformed(Verdict& verdict, std::string sentence) {
  fail(verdict, std::move(sentence));
  verdict.malformed = true;
}

/// Turns the gates of a tensor into the verdict: a failed gate fails it; a tensor that has errors to measure and no gate
/// with the power to do so is mistrusted.
void apply_gates(const std::string& name, const TensorErrors& errors, bool needs_power, Verdict& verdict) {
  for (const auto& [gate_name, gate] : errors.gates) {
    if (gate.verdict != Gate::Verdict::fail) continue;
    const std::string where = errors.worst ? fmt::format("; worst at {}: got {:.9g}, expected {:.9g}", describe(*errors.worst),
                                                         errors.worst_got, errors.worst_expected)
                                           : "";
    fail(verdict, fmt::format("{}: gate {} is {:.4g}, its limit {:.4g}, over {} values{}", name, gate_name, gate.value,
                              gate.limit, gate.n, where));
  }
  if (!needs_power || verdict.status != Status::passed) return;
  const bool power = std::any_of(errors.gates.begin(), errors.gates.end(), [](const auto& named) {
    const bool measures = named.first != "nonfinite" && named.first != "exact_zero";
    return measures && named.second.verdict != Gate::Verdict::no_power;
  });
  if (power) return;
  verdict.status = Status::mistrusted;
  verdict.reason =
      fmt::format("{}: no gate has the power to judge it (rounding the scores is no small, independent error here)", name);
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

std::vector<double> Judge::State::tokens(const Judged& t, const Outputs& outputs) const {
  const TokenShape s = shape(t);
  return tokens_of(outputs.*t.tensor, rows(t), s.heads, s.channels);
}

GateScale Judge::State::scale(const Judged& t, const std::string& gated_as) const {
  GateScale s;
  s.u = rounding.u;
  s.terms = static_cast<double>(t.over_keys ? inputs.lengths.max_q() * c.problem.group() : inputs.lengths.max_k());
  s.emulator_rms = ordinary.at(gated_as).rms;
  s.samples = ordinary.at(gated_as).samples;
  s.distinct = &t == &kOutput ? reference.distinct_scores : std::numeric_limits<double>::infinity();
  s.lazy_rescale = profile.lazy_rescale;
  s.eager = rounding.scores;
  s.has_power = reference.has_power;
  s.bias = !(rounding.scores && t.over_keys);
  return s;
}

void Judge::State::note_ordinary(const Judged& t, const std::string& gated_as, const Outputs& emulated, const Expected& against) {
  const ErrorStatistics s = measure_errors(tokens(t, emulated), against, shape(t), c.problem.dtype, 0);
  ordinary[gated_as] = {s.rms_z, effective_samples(s.row_energy, against.freedom)};
}

/// A reference that is not finite would match a NaN of whoever is judged: it is no yardstick.
void Judge::State::inspect_reference() {
  const auto infinite = [](double lse) { return std::isinf(lse); };
  has_empty_rows = std::any_of(reference.lse.value.begin(), reference.lse.value.end(), infinite);
  const auto known = [](double x) { return std::isfinite(x); };
  const auto no_nan = [](double x) { return !std::isnan(x); };
  finite = std::all_of(reference.lse.value.begin(), reference.lse.value.end(), no_nan);
  if (conventions.empty_row == Conventions::EmptyRow::nan && has_empty_rows) return;
  for (const Judged* t : {&kOutput, &kQueryGradient, &kKeyGradient, &kValueGradient})
    finite = finite && std::all_of(expected(*t).value.begin(), expected(*t).value.end(), known);
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

/// A sentence if the tensor is missing, or has another shape or dtype than the case asks for.
std::optional<std::string> Judge::State::malformed(const Judged& t, const Outputs& outputs) const {
  const at::Tensor& got = outputs.*t.tensor;
  if (!got.defined()) return fmt::format("{} is missing from the outputs", t.name);
  std::vector<int64_t> sizes = (t.over_keys ? inputs.k : inputs.q).sizes().vec();
  sizes.back() = t.value_channels ? c.problem.dv : c.problem.d;
  if (got.sizes() != at::IntArrayRef(sizes))
    return fmt::format("{} has the shape [{}], expected [{}]", t.name, fmt::join(got.sizes().vec(), ", "),
                       fmt::join(sizes, ", "));
  if (got.scalar_type() != inputs.q.scalar_type())
    return fmt::format("{} has the dtype {}, expected {}", t.name, c10::toString(got.scalar_type()),
                       c10::toString(inputs.q.scalar_type()));
  return std::nullopt;
}

std::optional<std::string> Judge::State::malformed_lse(const Outputs& outputs) const {
  const at::Tensor& got = outputs.lse;
  if (!got.defined()) return "lse is missing from the outputs, and the backend's conventions do not say `none`";
  std::vector<int64_t> sizes = inputs.q.sizes().vec();
  sizes.pop_back();
  if (got.sizes() != at::IntArrayRef(sizes))
    return fmt::format("lse has the shape [{}], expected [{}]", fmt::join(got.sizes().vec(), ", "), fmt::join(sizes, ", "));
  if (got.scalar_type() != at::kFloat)
    return fmt::format("lse has the dtype {}, expected Float", c10::toString(got.scalar_type()));
  return std::nullopt;
}

TensorErrors Judge::State::report(const std::vector<double>& got, const Expected& expected, const TokenShape& shape,
                                  const ErrorStatistics& s) const {
  TensorErrors e;
  e.max_abs = s.max_abs;
  e.rel_l2 = s.rel_l2;
  e.cosine = s.cosine;
  e.max_z = s.max_z;
  e.elements = static_cast<int64_t>(got.size());
  e.bad = s.beyond_limit + s.nonfinite_mismatches + s.exact_violations;
  if (s.first_bad) e.first_bad = shape.element(*s.first_bad);
  if (s.worst) {
    e.worst = shape.element(*s.worst);
    e.worst_got = got[*s.worst];
    e.worst_expected = expected.value[*s.worst];
  }
  return e;
}

/// dQ, dK and dV of padding are 0 whatever the backend leaves in padded rows of O: dO is 0 there and nobody sees those keys,
/// unless a query without keys spreads over all that are stored.
bool Judge::State::padding_is_zero(const Judged& t) const {
  if (conventions.padded_rows_zero || &t == &kQueryGradient) return true;
  return t.over_keys && !(conventions.empty_row == Conventions::EmptyRow::uniform && has_empty_rows);
}

/// Padded rows that are known to be 0 are 0 to the last bit.
void Judge::State::judge_padding(const Judged& t, const Outputs& outputs, TensorErrors& errors, Verdict& verdict) const {
  const std::vector<int64_t>& padding = t.over_keys ? k_padding : q_padding;
  if (padding.empty() || !padding_is_zero(t)) return;
  const TokenShape s = shape(t);
  const std::vector<double> got = tokens_of(outputs.*t.tensor, padding, s.heads, s.channels);
  Gate& gate = errors.gates["exact_zero"];
  for (size_t at = 0; at < got.size(); ++at) {
    ++gate.n;
    if (got[at] == 0) continue;
    const int64_t row_size = s.heads * s.channels, row = padding[at / row_size];
    const int64_t pitch = t.over_keys ? inputs.lengths.k_pitch : inputs.lengths.q_pitch;
    const auto within = static_cast<int64_t>(at) % row_size;
    if (gate.value == 0)
      fail(verdict,
           fmt::format("{}: a padded row must be 0 and holds {:.9g} at sequence {} head {} padded position {} channel {}", t.name,
                       got[at], row / pitch, within / s.channels, row % pitch, within % s.channels));
    gate.value += 1;
    gate.verdict = Gate::Verdict::fail;
    errors.bad += 1;
  }
}

void Judge::State::judge_tensor(const Judged& t, const Outputs& outputs, Verdict& verdict) const {
  if (const auto sentence = malformed(t, outputs)) return fail_malformed(verdict, *sentence);
  const bool gated = ordinary.count(t.name) > 0;  // else end to end, and gated given O
  const TokenShape s = shape(t);
  const Expected& x = expected(t);
  const std::vector<double> got = tokens(t, outputs);
  const double limit = gated ? z_limit(s.elements(), rounding.scores) : std::numeric_limits<double>::infinity();
  const ErrorStatistics statistics = measure_errors(got, x, s, c.problem.dtype, limit);
  TensorErrors errors = report(got, x, s, statistics);
  errors.gates = exact_gates(statistics);
  if (gated && statistics.elements > 0) errors.gates.merge(error_gates(statistics, scale(t, t.name)));
  const double field = field_error(got, x, c.problem.dtype);
  const double factor = &t == &kOutput ? kFieldFactorOutput : kFieldFactorGradient;
  const double field_limit = factor * eager_error.at(t.name) + kFieldSlack;
  errors.field_rules["2x_eager"] = {field, field_limit, field <= field_limit};
  judge_padding(t, outputs, errors, verdict);
  apply_gates(t.name, errors, gated && statistics.elements > 0, verdict);
  verdict.errors[t.name] = std::move(errors);
}

void Judge::State::judge_given_output(const Outputs& outputs, Verdict& verdict) const {
  const auto given = given_output(oracle, c, inputs, profile, conventions, reference, outputs.o);
  for (const auto& [t, x] : {std::pair{&kQueryGradient, &given.dq}, std::pair{&kKeyGradient, &given.dk}}) {
    const std::string name = std::string(t->name) + "_given_o";
    const TokenShape s = shape(*t);
    const std::vector<double> got = tokens(*t, outputs);
    const ErrorStatistics statistics = measure_errors(got, *x, s, c.problem.dtype, z_limit(s.elements(), rounding.scores));
    TensorErrors errors = report(got, *x, s, statistics);
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
  if (const auto sentence = malformed_lse(outputs)) return fail_malformed(verdict, *sentence);
  const TokenShape s{offsets_of(inputs.lengths.q), c.problem.hq, 1};
  const std::vector<double> got = tokens_of(outputs.lse, inputs.q_rows, s.heads, 1);
  const ErrorStatistics statistics = measure_errors(got, reference.lse, s, Dtype::fp32, lse_limit());
  TensorErrors errors = report(got, reference.lse, s, statistics);
  errors.gates = exact_gates(statistics);
  if (statistics.elements > 0) errors.gates["lse"] = lse_gate(statistics);
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
  if (pass == Pass::forward || s.rounding.conditional()) s.judge_tensor(kOutput, outputs, verdict);
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
  const std::vector<double> x = tokens_of(a, rows, heads, channels), y = tokens_of(b, rows, heads, channels);
  Difference difference;
  difference.tensor = tensor;
  double error2 = 0, size2 = 0;
  for (size_t at = 0; at < x.size(); ++at) {
    if (x[at] == y[at] || (std::isnan(x[at]) && std::isnan(y[at]))) {
      if (std::isfinite(x[at])) size2 += x[at] * x[at];
      continue;
    }
    const double error = std::abs(x[at] - y[at]);
    difference.max_abs = std::isfinite(error) ? std::max(difference.max_abs, error) : std::numeric_limits<double>::infinity();
    error2 += std::isfinite(error) ? error * error : std::numeric_limits<double>::infinity();
    size2 += std::isfinite(x[at]) ? x[at] * x[at] : 0;
  }
  difference.rel_l2 = error2 > 0 ? std::sqrt(error2 / size2) : 0;
  return difference;
}

}  // namespace attnbench
