#include "harness/worker/bit_audit.hpp"

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <numeric>
#include <stdexcept>

#include <ATen/ops/full_like.h>
#include <fmt/format.h>

#include "harness/attention/tokens.hpp"
#include "harness/worker/bits.hpp"
#include "harness/worker/memory.hpp"
#include "harness/worker/regroup.hpp"
#include "harness/worker/watched_run.hpp"

namespace attnbench {
namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Of any prepared run, in the layout of its case.
Outputs outputs_of(const Run& run, Pass pass) {
  const Window& window = run.windows.back();
  Outputs outputs = window.forward();
  if (pass == Pass::forward) return outputs;
  const Outputs gradients = window.backward();
  outputs.dq = gradients.dq;
  outputs.dk = gradients.dk;
  outputs.dv = gradients.dv;
  return outputs;
}

Layout other_layout(Layout layout) {
  return layout == Layout::packed ? Layout::padded : Layout::packed;
}

}  // namespace

struct BitAudit::Audited {
  const char* name;
  Pass pass;
  at::Tensor Outputs::*tensor;
  bool over_keys;
  int64_t Problem::*channels;  ///< null: one
};

const std::vector<BitAudit::Audited>& BitAudit::tensors() {
  static const std::vector<Audited> all{{"o", Pass::forward, &Outputs::o, false, &Problem::dv},
                                        {"lse", Pass::forward, &Outputs::lse, false, nullptr},
                                        {"dq", Pass::backward, &Outputs::dq, false, &Problem::d},
                                        {"dk", Pass::backward, &Outputs::dk, true, &Problem::d},
                                        {"dv", Pass::backward, &Outputs::dv, true, &Problem::dv}};
  return all;
}

bool BitAudit::is_computed(const Audited& t) const {
  return t.pass == judged_.pass && (judged_.outputs.*t.tensor).defined();
}

TokenShape BitAudit::shape(const Audited& t) const {
  const Problem& p = judged_.c.problem;
  const SequenceLengths& lengths = judged_.inputs.get().lengths;
  return {offsets_of(t.over_keys ? lengths.k : lengths.q), t.over_keys ? p.hkv : p.hq, t.channels ? p.*t.channels : 1};
}

/// [tokens, heads, channels], in the order of `inputs`, whose outputs they are.
at::Tensor BitAudit::tokens(const Audited& t, const Outputs& outputs, const Inputs& inputs) const {
  const TokenShape s = shape(t);
  const at::Tensor& tensor = outputs.*t.tensor;
  const at::ScalarType dtype = (judged_.outputs.*t.tensor).scalar_type();
  if (!tensor.defined() || tensor.scalar_type() != dtype)
    throw std::runtime_error(fmt::format("{}: missing, or of another dtype than in the judged call", t.name));
  return rows_of(tensor, t.over_keys ? inputs.k_rows : inputs.q_rows, s.heads, s.channels);
}

Invariance& BitAudit::result(Relation relation, const Audited& t) {
  const auto found =
      std::ranges::find_if(results_, [&](const Invariance& i) { return i.relation == relation && i.tensor == t.name; });
  if (found != results_.end()) return *found;
  Invariance& fresh = results_.emplace_back();
  fresh.relation = relation;
  fresh.tensor = t.name;
  fresh.promised = promises(judged_.backend.declaration(), relation, t.name, judged_.device);
  fresh.elements = shape(t).elements();
  return fresh;
}

void BitAudit::note_equal(Relation relation, const Audited& t) {
  ++result(relation, t).compared;
}

/// Enters one result; what it alone says, equal or not.
Invariance BitAudit::note(Relation relation, const Audited& t, const std::string& where, const at::Tensor& got) {
  Invariance& all = result(relation, t);
  ++all.compared;
  Invariance one = all;
  one.outcome = Invariance::Outcome::equal;
  const auto difference = bit_difference(tokens(t, judged_.outputs, judged_.inputs.get()), got);
  if (!difference) return one;
  one.outcome = Invariance::Outcome::differs;
  one.compared = one.differing = 1;
  one.changed = difference->elements;
  one.max_ulp = difference->max_ulp;
  one.where = where;
  one.first = shape(t).element(difference->first);
  one.judged = difference->a;
  one.got = difference->b;
  const Invariance before = all;
  if (before.differing == 0) all = one;
  all.compared = before.compared;
  all.differing = before.differing + 1;
  all.changed = std::max(before.changed, one.changed);
  all.max_ulp = std::max(before.max_ulp, one.max_ulp);
  return one;
}

void BitAudit::announce_if_due() {
  const double now = seconds_now();
  if (now - announced_s_ < 1) return;
  announced_s_ = now;
  announce_();
}

std::string BitAudit::compare_call(const Disturbance::Condition& condition, const std::string& where, const Outputs& outputs,
                                   const Objection& objection) {
  for (const Audited& t : tensors()) {
    if (!is_computed(t)) continue;
    if (same_bits(judged_.outputs.*t.tensor, outputs.*t.tensor)) {
      note_equal(condition.relation, t);
      continue;
    }
    const Invariance difference = note(condition.relation, t, where, tokens(t, outputs, judged_.inputs.get()));
    if (difference.outcome == Invariance::Outcome::equal || !objection) continue;  // they differ in padding alone
    if (std::string objected = objection(difference, outputs); !objected.empty()) return objected;
  }
  return "";
}

std::string BitAudit::repeat(int64_t calls, Disturbance* disturbance, const Objection& objection) {
  NamedTensors held = judged_.held;
  const size_t judged = held.size();
  for (int64_t call = 0; call < calls; ++call) {
    announce_if_due();
    const Disturbance::Condition condition = disturbance ? disturbance->before_call(call) : Disturbance::Condition{};
    const std::string where =
        fmt::format("repeat {} of {}{}{}", call + 1, calls, condition.text.empty() ? "" : ", ", condition.text);
    const Outputs outputs =
        run_again(judged_.run, judged_.pass, judged_.inputs, disturbance ? disturbance->delay() : std::function<void()>());
    if (const std::string found = borrowed(outputs, held); !found.empty()) return fmt::format("{}: {}", where, found);
    if (std::string objected = compare_call(condition, where, outputs, objection); !objected.empty()) return objected;
    held.resize(judged);
    for (const auto& [name, tensor] : named_tensors(outputs)) held.emplace_back(name + " of the call before", tensor);
  }
  return "";
}

void BitAudit::leave_out(Relation relation, const std::string& reason) {
  for (const Audited& t : tensors()) {
    if (!is_computed(t)) continue;
    Invariance& entry = result(relation, t);
    entry.outcome = Invariance::Outcome::not_supported;
    entry.reason = reason;
  }
}

void BitAudit::regroup_as(Relation relation, const std::vector<std::vector<int64_t>>& groups, Layout layout) {
  const Declaration& declaration = judged_.backend.declaration();
  std::map<const Audited*, at::Tensor> whole;
  for (const Audited& t : tensors())
    if (is_computed(t))
      whole[&t] = at::full_like(tokens(t, judged_.outputs, judged_.inputs.get()), std::numeric_limits<double>::quiet_NaN());
  for (const std::vector<int64_t>& group : groups) {
    announce_if_due();
    const Regrouped part =
        attnbench::regroup(judged_.c, judged_.inputs.get(), group, layout, declaration.conventions.poison, judged_.device);
    if (const auto why = judged_.backend.why_not(part.c, judged_.pass, judged_.device)) return leave_out(relation, *why);
    const MemoryScope checked(MemoryMode::checked);
    const Run run = judged_.backend.prepare(part.c, part.inputs, judged_.pass);
    const Outputs outputs = outputs_of(run, judged_.pass);
    for (auto& [t, rows] : whole)
      rows.index_copy_(0, to_tensor(t->over_keys ? part.k_ranks : part.q_ranks, rows.device()), tokens(*t, outputs, part.inputs));
  }
  for (const Audited& t : tensors())
    if (is_computed(t)) note(relation, t, "", whole.at(&t));
}

void BitAudit::regroup() {
  if (judged_.c.problem.dropout.p > 0) {
    for (const Relation relation : {Relation::alone, Relation::order, Relation::packing})
      leave_out(relation, "a mask of dropout is drawn for the whole case");
    return;
  }
  const Layout layout = judged_.c.problem.layout;
  std::vector<int64_t> all(judged_.inputs.get().lengths.q.size());
  std::iota(all.begin(), all.end(), 0);
  if (all.size() > 1) {
    std::vector<std::vector<int64_t>> single;
    for (const int64_t n : all) single.push_back({n});
    regroup_as(Relation::alone, single, layout);
    regroup_as(Relation::order, {{all.rbegin(), all.rend()}}, layout);
  } else {
    leave_out(Relation::alone, "the case has one sequence");
    leave_out(Relation::order, "the case has one sequence");
  }
  regroup_as(Relation::packing, {all}, other_layout(layout));
}

}  // namespace attnbench
