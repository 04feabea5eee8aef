// Gathers the real tokens of a case, asks an oracle about every head and sums over the heads of a group.
#include "harness/attention/reference.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "harness/attention/oracle.hpp"
#include "harness/attention/parallel.hpp"
#include "harness/attention/tokens.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// Elements of one operand of a call to an oracle on a GPU: short heads go there together, long ones one by one.
constexpr int64_t kGpuCallElements = 1 << 22;

/// Query heads [head, head + count) of one sequence, which an oracle is asked about at once.
struct Group {
  int64_t sequence = 0, head = 0, count = 0;
};

/// Storage rows of a sequence's padding, read by uniform empty rows only.
std::vector<int64_t> padding_rows(const std::vector<int64_t>& real, int64_t begin, int64_t end, int64_t first, int64_t pitch) {
  std::vector<int64_t> rows;
  for (int64_t row = first; row < first + pitch; ++row)
    if (!std::binary_search(real.begin() + begin, real.begin() + end, row)) rows.push_back(row);
  return rows;
}

/// All heads of a case as tokens, where the oracle computes.
class Heads {
 public:
  Heads(OracleKind kind, const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row);

  const std::vector<Group>& groups() const { return groups_; }
  c10::Device device() const { return device_; }
  const Problem& problem() const { return problem_; }
  const Rounding& rounding() const { return rounding_; }
  int64_t queries() const { return q_offsets_.back(); }
  int64_t keys() const { return k_offsets_.back(); }
  int64_t key_head(int64_t head) const { return head / problem_.group(); }

  HeadProblem head_problem(const Group& group) const;
  /// The group's place in a tensor over queries [tokens, hq, …]: [count, queries, …].
  Tensor of_queries(const Tensor& tokens, const Group& group) const;
  /// The place of the sequence's real keys in a tensor over keys [tokens, …].
  Tensor of_keys(const Tensor& tokens, const Group& group) const;
  /// Queries x group heads that a row of dk or dv sums over: float64 [tokens, 1, 1].
  Tensor terms_of_keys() const;

 private:
  Tensor keys_of(const Tensor& real, const std::vector<Tensor>& padding, const Group& group) const;

  const Problem& problem_;
  const Inputs& inputs_;
  Conventions::EmptyRow empty_row_;
  c10::Device device_;
  Rounding rounding_;
  std::vector<Group> groups_;
  std::vector<int64_t> q_offsets_, k_offsets_;
  std::vector<double> slopes_, sinks_;         ///< by query head; empty: none
  Tensor q_, k_, v_, dout_;                    ///< in the case's dtype
  std::vector<Tensor> k_padding_, v_padding_;  ///< by sequence; empty unless empty rows are uniform
};

void refuse_unknown(const Case& c, const Rounding& rounding, Conventions::EmptyRow empty_row) {
  const Problem& p = c.problem;
  if (p.dropout.p != 0) throw std::invalid_argument("the float64 oracles know no dropout: " + format_case(c));
  if (p.has_score_options() && (rounding.scores || empty_row != Conventions::EmptyRow::zero))
    throw std::invalid_argument(
        "the float64 oracles know softcap, alibi and sink where scores are not rounded and empty rows are 0: " + format_case(c));
}

/// ALiBi's slope of each query head: Press, Smith, Lewis, Train Short, Test Long (ICLR 2022), section 3.
std::vector<double> slopes_of(const Problem& p) {
  std::vector<double> slopes;
  for (int64_t head = 0; p.alibi && head < p.hq; ++head)
    slopes.push_back(std::exp2(-8.0 * static_cast<double>(head + 1) / static_cast<double>(p.hq)));
  return slopes;
}

std::vector<double> sinks_of(const Inputs& inputs) {
  if (!inputs.sink.defined()) return {};
  const Tensor host = inputs.sink.to(at::kCPU).to(at::kDouble).contiguous();
  return {host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel()};
}

/// Those of the group's heads.
std::vector<double> part_of(const std::vector<double>& by_head, const Group& group) {
  if (by_head.empty()) return {};
  return {by_head.begin() + group.head, by_head.begin() + group.head + group.count};
}

Heads::Heads(OracleKind kind, const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row)
    : problem_(c.problem),
      inputs_(inputs),
      empty_row_(empty_row),
      device_(kind == OracleKind::eigen ? at::kCPU : inputs.q.device()) {
  const Problem& p = problem_;
  rounding_ = rounding_of(profile, p, inputs.scale);
  refuse_unknown(c, rounding_, empty_row);
  slopes_ = slopes_of(p);
  sinks_ = sinks_of(inputs);
  q_offsets_ = offsets_of(inputs.lengths.q);
  k_offsets_ = offsets_of(inputs.lengths.k);
  q_ = rows_of(inputs.q, inputs.q_rows, p.hq, p.d).to(device_);
  dout_ = rows_of(inputs.dout, inputs.q_rows, p.hq, p.dv).to(device_);
  k_ = rows_of(inputs.k, inputs.k_rows, p.hkv, p.d).to(device_);
  v_ = rows_of(inputs.v, inputs.k_rows, p.hkv, p.dv).to(device_);
  const int64_t sequences = static_cast<int64_t>(inputs.lengths.q.size()), pitch = inputs.lengths.k_pitch;
  const bool reads_padding = p.layout == Layout::padded && empty_row == Conventions::EmptyRow::uniform;
  for (int64_t n = 0; n < sequences; ++n) {
    const int64_t elements = (inputs.lengths.q[n] + std::max(inputs.lengths.k[n], pitch)) * std::max(p.d, p.dv);
    const int64_t most = device().is_cpu() ? 1 : std::clamp<int64_t>(kGpuCallElements / std::max<int64_t>(elements, 1), 1, p.hq);
    for (int64_t head = 0; head < p.hq; head += most) groups_.push_back({n, head, std::min(most, p.hq - head)});
    if (!reads_padding) continue;
    const auto rows = padding_rows(inputs.k_rows, k_offsets_[n], k_offsets_[n + 1], n * pitch, pitch);
    k_padding_.push_back(rows_of(inputs.k, rows, p.hkv, p.d).to(device_));
    v_padding_.push_back(rows_of(inputs.v, rows, p.hkv, p.dv).to(device_));
  }
}

Tensor Heads::of_queries(const Tensor& tokens, const Group& group) const {
  const int64_t first = q_offsets_[group.sequence];
  return tokens.narrow(0, first, inputs_.lengths.q[group.sequence]).narrow(1, group.head, group.count).transpose(0, 1);
}

Tensor Heads::of_keys(const Tensor& tokens, const Group& group) const {
  return tokens.narrow(0, k_offsets_[group.sequence], inputs_.lengths.k[group.sequence]);
}

/// Float64 [count, stored keys, channels]: for each query head of the group its key head, real keys first.
Tensor Heads::keys_of(const Tensor& real, const std::vector<Tensor>& padding, const Group& group) const {
  Tensor rows = of_keys(real, group);
  if (!padding.empty()) rows = at::cat({rows, padding[group.sequence]}, 0);
  std::vector<int64_t> heads;
  for (int64_t head = group.head; head < group.head + group.count; ++head) heads.push_back(key_head(head));
  return rows.index_select(1, to_tensor(heads, device())).transpose(0, 1).to(at::kDouble).contiguous();
}

HeadProblem Heads::head_problem(const Group& group) const {
  HeadProblem h;
  h.q = of_queries(q_, group).to(at::kDouble).contiguous();
  h.dout = of_queries(dout_, group).to(at::kDouble).contiguous();
  h.k = keys_of(k_, k_padding_, group);
  h.v = keys_of(v_, v_padding_, group);
  h.heads = group.count;
  h.queries = h.q.size(1);
  h.keys = inputs_.lengths.k[group.sequence];
  h.stored_keys = h.k.size(1);
  h.d = problem_.d;
  h.dv = problem_.dv;
  h.problem = &problem_;
  h.scale = inputs_.scale;
  h.slopes = part_of(slopes_, group);
  h.sinks = part_of(sinks_, group);
  h.empty_row = empty_row_;
  h.rounding = rounding_;
  return h;
}

Tensor Heads::terms_of_keys() const {
  std::vector<int64_t> terms;
  for (size_t n = 0; n < inputs_.lengths.k.size(); ++n)
    terms.insert(terms.end(), inputs_.lengths.k[n], inputs_.lengths.q[n] * problem_.group());
  return to_tensor(terms, device()).to(at::kDouble).view({-1, 1, 1});
}

/// Hands the answer about every group to `take`, in their order. On the CPU all are computed first, spread over the cores; on
/// another device each is taken before the next is computed, so that memory holds one.
template <typename Answer>
void for_each_answer(const Heads& heads, const std::function<Answer(const Group&)>& compute,
                     const std::function<void(const Group&, const Answer&)>& take) {
  const std::vector<Group>& groups = heads.groups();
  const size_t together = heads.device().is_cpu() ? groups.size() : 1;
  for (size_t first = 0; first < groups.size(); first += together) {
    std::vector<Answer> answers(together);
    for_each_piece(heads.device(), static_cast<int64_t>(together), [&](int64_t i) { answers[i] = compute(groups[first + i]); });
    for (size_t i = 0; i < together; ++i) take(groups[first + i], answers[i]);
  }
}

/// ulp(x)^2/12, of a float64 x: the bits of the exponent alone are the power of two at or below |x|.
Tensor rounding_variance(const Rounding& r, const Tensor& x) {
  const double smallest = ulp(r.dtype, 0), ulp_of_one = ulp(r.dtype, 1);
  const Tensor power = x.view(at::kLong).bitwise_and(int64_t(0x7ff) << 52).view(at::kDouble);
  return power.mul(ulp_of_one).clamp_min_(smallest).square_().div_(12);
}

/// Adds each head's share of dk or dv to its key head, with the rounding of the partial sum where the profile rounds it.
void add_share(const Heads& heads, const Group& group, const Tensor& value, const Tensor& variance, Expected& to) {
  const Tensor values = heads.of_keys(to.value, group), variances = heads.of_keys(to.variance, group);
  for (int64_t i = 0; i < group.count; ++i) {
    const int64_t head = heads.key_head(group.head + i), keys = values.size(0);
    const Tensor share = value.select(0, i).narrow(0, 0, keys);
    values.select(1, head) += share;
    variances.select(1, head) += variance.select(0, i).narrow(0, 0, keys);
    if (heads.rounding().gqa_partials) variances.select(1, head) += rounding_variance(heads.rounding(), share);
  }
}

/// The same for sums without a variance.
void add_sums(const Heads& heads, const Group& group, const Tensor& sums, const Tensor& to) {
  const Tensor place = heads.of_keys(to, group);
  for (int64_t i = 0; i < group.count; ++i)
    place.select(1, heads.key_head(group.head + i)) += sums.select(0, i).narrow(0, 0, place.size(0));
}

/// What depends on the sum over the group: its rounding, its systematic part, in fp32 its accumulation. A key that no
/// query reads has a gradient of exactly 0: variance 0.
void finish_sum(const Heads& heads, const Tensor& seen, Expected& sum) {
  const Rounding& r = heads.rounding();
  sum.variance += rounding_variance(r, sum.value);
  if (sum.allowance.defined()) sum.variance += sum.allowance.square();
  if (r.accumulation > 0) sum.variance += sum.value.square().mul_(heads.terms_of_keys() * r.accumulation);
  sum.variance.masked_fill_(seen.logical_not(), 0);
}

void add_allowance(Expected& x) {
  x.variance += at::where(x.variance != 0, x.allowance.square(), 0.0);
}

/// Distinct values among the samples, where fewer than half of them are (integer data: equal scores round alike).
double distinct_scores(const Tensor& all) {
  if (all.numel() <= 64) return kInfinity;
  const Tensor host = all.to(at::kCPU).contiguous();
  std::vector<double> samples(host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel());
  std::sort(samples.begin(), samples.end());
  size_t distinct = 1;
  for (size_t i = 1; i < samples.size(); ++i) distinct += samples[i] - samples[i - 1] > 1e-6 * (1 + std::abs(samples[i]));
  return 2 * distinct < samples.size() ? static_cast<double>(distinct) : kInfinity;
}

Expected expected(const Heads& heads, int64_t tokens, int64_t head_count, int64_t channels, bool allowance) {
  const auto options = at::TensorOptions().dtype(at::kDouble).device(heads.device());
  Expected x;
  x.value = at::zeros({tokens, head_count, channels}, options);
  x.variance = at::zeros_like(x.value);
  if (allowance) x.allowance = at::zeros_like(x.value);
  x.freedom = at::ones({tokens, head_count}, options);
  return x;
}

void move(Expected& x, c10::Device device) {
  for (Tensor* t : {&x.value, &x.variance, &x.allowance, &x.freedom})
    if (t->defined()) *t = t->to(device);
}

/// Collects the heads' answers, in the order of the heads.
class Collector {
 public:
  explicit Collector(const Heads& heads) : heads_(heads) {
    const Problem& p = heads.problem();
    out_.o = expected(heads, heads.queries(), p.hq, p.dv, false);
    out_.lse = expected(heads, heads.queries(), p.hq, 1, false);
    out_.dq = expected(heads, heads.queries(), p.hq, p.d, true);
    out_.dk = expected(heads, heads.keys(), p.hkv, p.d, true);
    out_.dv = expected(heads, heads.keys(), p.hkv, p.dv, false);
    p2_ = at::zeros_like(out_.dk.freedom), p4_ = p2_.clone(), ds2_ = p2_.clone(), ds4_ = p2_.clone();
    seen_ = at::zeros({heads.keys(), 1, 1}, p2_.options().dtype(at::kBool));
    has_power_ = at::full({}, true, seen_.options());
  }

  void add(const Group& group, const HeadAnswer& a);
  Reference finish();

 private:
  void add_keys(const Group& group, const HeadAnswer& a);

  const Heads& heads_;
  Reference out_;
  Tensor p2_, p4_, ds2_, ds4_, seen_, has_power_;
  std::vector<Tensor> samples_;  ///< until there are enough
  int64_t sampled_ = 0;
};

void Collector::add(const Group& group, const HeadAnswer& a) {
  const auto place = [&](const Tensor& rows, const Tensor& to) { heads_.of_queries(to, group).copy_(rows); };
  place(a.o, out_.o.value);
  place(a.o_variance, out_.o.variance);
  place(a.o_freedom, out_.o.freedom);
  place(a.dq, out_.dq.value);
  place(a.dq_variance, out_.dq.variance);
  place(a.dq_allowance, out_.dq.allowance);
  place(a.dq_freedom, out_.dq.freedom);
  place(a.lse.unsqueeze(-1), out_.lse.value);
  place(a.lse_sigma.square().unsqueeze(-1), out_.lse.variance);
  has_power_.logical_and_(a.has_power);
  if (sampled_ < kScoreSamples) {
    samples_.push_back(a.score_samples.flatten());
    sampled_ += samples_.back().numel();
  }
  add_keys(group, a);
}

void Collector::add_keys(const Group& group, const HeadAnswer& a) {
  add_share(heads_, group, a.dk, a.dk_variance, out_.dk);
  add_share(heads_, group, a.dv, a.dv_variance, out_.dv);
  add_sums(heads_, group, a.dk_allowance, out_.dk.allowance);
  add_sums(heads_, group, a.p2, p2_);
  add_sums(heads_, group, a.p4, p4_);
  add_sums(heads_, group, a.ds2, ds2_);
  add_sums(heads_, group, a.ds4, ds4_);
  const Tensor seen = heads_.of_keys(seen_, group);
  seen.logical_or_(a.key_seen.narrow(0, 0, seen.size(0)).view({-1, 1, 1}));
}

Reference Collector::finish() {
  const Problem& p = heads_.problem();
  finish_sum(heads_, seen_, out_.dk);
  finish_sum(heads_, seen_, out_.dv);
  add_allowance(out_.dq);
  const auto sources = [](const Tensor& sum2, const Tensor& sum4, int64_t channels) {
    return at::where(sum4 > 0, (sum2.square() / sum4).clamp(1, static_cast<double>(channels)), 1.0);
  };
  out_.dk.freedom = sources(ds2_, ds4_, p.d);
  out_.dv.freedom = sources(p2_, p4_, p.dv);
  out_.has_power = has_power_.item<bool>();
  out_.distinct_scores = kInfinity;
  if (heads_.rounding().p && sampled_ > 0)
    out_.distinct_scores = distinct_scores(at::cat(samples_).narrow(0, 0, std::min(sampled_, kScoreSamples)));
  return std::move(out_);
}

}  // namespace

Reference make_reference(OracleKind kind, const Case& c, const Inputs& inputs, const Profile& profile,
                         Conventions::EmptyRow empty_row) {
  const Heads heads(kind, c, inputs, profile, empty_row);
  Collector collector(heads);
  for_each_answer<HeadAnswer>(
      heads,
      [&](const Group& group) {
        const HeadProblem h = heads.head_problem(group);
        return kind == OracleKind::eigen ? eigen_head(h) : torch_heads(h);
      },
      [&](const Group& group, const HeadAnswer& answer) { collector.add(group, answer); });
  Reference reference = collector.finish();
  for (Expected* x : {&reference.o, &reference.lse, &reference.dq, &reference.dk, &reference.dv}) move(*x, inputs.q.device());
  reference.oracle = kind == OracleKind::eigen ? "eigen" : "torch";
  return reference;
}

ConditionalGradients given_output(OracleKind kind, const Case& c, const Inputs& inputs, const Profile& profile,
                                  Conventions::EmptyRow empty_row, const Reference& reference, const at::Tensor& o) {
  const Heads heads(kind, c, inputs, profile, empty_row);
  const Problem& p = heads.problem();
  const Tensor kernels = tokens_of(o, inputs.q_rows, p.hq, p.dv);
  // What is not finite fails as O; it must not excuse the gradients.
  const Tensor given = at::where(kernels.abs() < kInfinity, kernels, reference.o.value).to(heads.device());
  ConditionalGradients out{expected(heads, heads.queries(), p.hq, p.d, false), expected(heads, heads.keys(), p.hkv, p.d, false)};
  out.dq.allowance = reference.dq.allowance.to(heads.device());
  out.dq.freedom = reference.dq.freedom;
  out.dk.allowance = reference.dk.allowance.to(heads.device());
  out.dk.freedom = reference.dk.freedom;
  for_each_answer<HeadGradients>(
      heads,
      [&](const Group& group) {
        const HeadProblem h = heads.head_problem(group);
        const Tensor o_of_group = heads.of_queries(given, group).contiguous();
        return kind == OracleKind::eigen ? eigen_head_given_output(h, o_of_group) : torch_heads_given_output(h, o_of_group);
      },
      [&](const Group& group, const HeadGradients& a) {
        heads.of_queries(out.dq.value, group).copy_(a.dq);
        heads.of_queries(out.dq.variance, group).copy_(a.dq_variance);
        add_share(heads, group, a.dk, a.dk_variance, out.dk);
      });
  finish_sum(heads, reference.dk.variance.narrow(-1, 0, 1).to(heads.device()) != 0, out.dk);
  add_allowance(out.dq);
  for (Expected* x : {&out.dq, &out.dk}) move(*x, inputs.q.device());
  return out;
}

}  // namespace attnbench
