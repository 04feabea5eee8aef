// Asks an oracle about every head of a case and sums over the heads of a group.
#include "harness/attention/reference.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/diagonal.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "harness/attention/heads.hpp"
#include "harness/attention/oracle.hpp"
#include "harness/attention/parallel.hpp"
#include "harness/attention/spacing.hpp"
#include "harness/attention/tokens.hpp"

namespace attnbench {
namespace {

using at::Tensor;

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
  return spacing(r.dtype, x).square_().div_(12);
}

/// to [tokens, key heads, …] += share [tokens of the group, heads, …].
void add_to_key_heads(const Tensor& to, const Group& group, const Tensor& share) {
  to.index_copy_(0, group.k_tokens, to.index_select(0, group.k_tokens).index_add_(1, group.key_heads, share));
}

/// Adds each head's share of dk or dv to its key head, with the rounding of the partial sum where the profile rounds it.
void add_share(const Heads& heads, const Group& group, const Tensor& value, const Tensor& variance, Expected& to) {
  const Tensor share = heads.key_tokens(value, group);
  Tensor of_share = heads.key_tokens(variance, group);
  if (heads.rounding().gqa_partials) of_share = of_share + rounding_variance(heads.rounding(), share.contiguous());
  add_to_key_heads(to.value, group, share);
  add_to_key_heads(to.variance, group, of_share);
}

/// The same for sums without a variance.
void add_sums(const Heads& heads, const Group& group, const Tensor& sums, const Tensor& to) {
  add_to_key_heads(to, group, heads.key_tokens(sums, group));
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

/// sum rho^2 over all pairs of channels, rho their correlation about 0 over tokens and heads that end in one key head:
/// [key heads] of [tokens, heads, channels]. NaN, in keys that nobody reads, counts as 0.
Tensor correlations2(const Tensor& tokens, int64_t key_heads) {
  const int64_t channels = tokens.size(2);
  const int64_t group = tokens.size(1) / key_heads;
  const Tensor by_head = at::nan_to_num(tokens, 0.0).view({tokens.size(0), key_heads, group, channels}).transpose(0, 1);
  const Tensor rows = by_head.reshape({key_heads, tokens.size(0) * group, channels}), sums = rows.mT().matmul(rows);
  const Tensor squares = sums.diagonal(0, 1, 2);
  const Tensor rho2 = sums.square() / (squares.unsqueeze(1) * squares.unsqueeze(2));
  return at::where(rho2.isfinite(), rho2, 0.0).sum({1, 2});
}

/// An error of dS comes to every channel of dq through the same row of K (of dk: Q), and where K's channels have a mean, to all
/// alike. correlated: correlations2(), by head. Of c channels that have it as the part s of their variances
/// c^2 / (c + s^2 (correlated - c)) are independent.
Tensor independent_channels(const Rounding& r, const Expected& x, const Tensor& correlated) {
  const auto c = static_cast<double>(x.value.size(2));
  const Tensor part = 1 - rounding_variance(r, x.value) / x.variance;
  const Tensor s2 = at::where(x.variance > 0, part, 0.0).mean(-1).square();
  return (c * c / (c + s2 * (correlated - c).clamp_min(0))).clamp_min(1);
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
  }

  void add(const Group& group, const HeadAnswer& a);
  Reference finish();

 private:
  void add_keys(const Group& group, const HeadAnswer& a);
  Tensor samples() const;

  const Heads& heads_;
  Reference out_;
  Tensor p2_, p4_, ds2_, ds4_, seen_;
  std::vector<Tensor> samples_;
  std::vector<int64_t> sampled_heads_;  ///< by sequence and head
};

void Collector::add(const Group& group, const HeadAnswer& a) {
  const auto place = [&](const Tensor& rows, const Tensor& to) { heads_.place_queries(rows, group, to); };
  place(a.o, out_.o.value);
  place(a.o_variance, out_.o.variance);
  place(a.o_freedom, out_.o.freedom);
  place(a.dq, out_.dq.value);
  place(a.dq_variance, out_.dq.variance);
  place(a.dq_allowance, out_.dq.allowance);
  place(a.dq_freedom, out_.dq.freedom);
  place(a.lse.unsqueeze(-1), out_.lse.value);
  place(a.lse_sigma.square().unsqueeze(-1), out_.lse.variance);
  samples_.push_back(a.score_samples);
  for (const int64_t i : a.sampled_heads)
    sampled_heads_.push_back(group.sequences[i / group.heads] * heads_.problem().hq + group.head + i % group.heads);
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
  const Tensor seen = a.key_seen.flatten().index_select(0, group.k_places).view({-1, 1, 1});
  seen_.index_copy_(0, group.k_tokens, seen_.index_select(0, group.k_tokens).logical_or_(seen));
}

/// The first that give enough, in the order of sequences and heads.
Tensor Collector::samples() const {
  std::vector<int64_t> order(sampled_heads_.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](int64_t i) { return sampled_heads_[i]; });
  order.resize(std::min<size_t>(order.size(), kScoreSamples));
  return at::cat(samples_).index_select(0, to_tensor(order, heads_.device()));
}

Reference Collector::finish() {
  const Problem& p = heads_.problem();
  finish_sum(heads_, seen_, out_.dk);
  finish_sum(heads_, seen_, out_.dv);
  add_allowance(out_.dq);
  const auto sources = [](const Tensor& sum2, const Tensor& sum4, int64_t channels) {
    return at::where(sum4 > 0, (sum2.square() / sum4).clamp(1, static_cast<double>(channels)), 1.0);
  };
  const bool replayed = heads_.rounding().scores;
  out_.dk.freedom = replayed ? at::full_like(ds2_, p.d) : sources(ds2_, ds4_, p.d);
  out_.dv.freedom = replayed ? at::full_like(p2_, p.dv) : sources(p2_, p4_, p.dv);
  out_.distinct_scores = kInfinity;
  if (heads_.rounding().p && !replayed && !sampled_heads_.empty()) out_.distinct_scores = distinct_scores(samples());
  return std::move(out_);
}

}  // namespace

std::string_view name_of(OracleKind kind) {
  return kind == OracleKind::eigen ? "eigen" : "torch";
}

Oracle::Oracle(OracleKind kind, const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row)
    : kind_(kind), inputs_(inputs), heads_(std::make_unique<const Heads>(kind, c, inputs, profile, empty_row)) {}

Oracle::~Oracle() = default;

Reference Oracle::reference() const {
  Collector collector(*heads_);
  for_each_answer<HeadAnswer>(
      *heads_,
      [&](const Group& group) {
        const HeadProblem h = heads_->head_problem(group);
        return kind_ == OracleKind::eigen ? eigen_head(h) : torch_heads(h);
      },
      [&](const Group& group, const HeadAnswer& answer) { collector.add(group, answer); });
  Reference reference = collector.finish();
  for (Expected* x : {&reference.o, &reference.lse, &reference.dq, &reference.dk, &reference.dv}) move(*x, inputs_.q.device());
  return reference;
}

ConditionalGradients Oracle::given_output(const Reference& reference, const at::Tensor& o) const {
  const Heads& heads = *heads_;
  const Problem& p = heads.problem();
  const Tensor kernels = tokens_of(o, inputs_.q_rows, p.hq, p.dv);
  // What is not finite fails as O; it must not excuse the gradients.
  const Tensor given = at::where(kernels.abs() < kInfinity, kernels, reference.o.value).to(heads.device());
  ConditionalGradients out{expected(heads, heads.queries(), p.hq, p.d, false), expected(heads, heads.keys(), p.hkv, p.d, false)};
  out.dq.allowance = reference.dq.allowance.to(heads.device());
  out.dk.allowance = reference.dk.allowance.to(heads.device());
  for_each_answer<HeadGradients>(
      heads,
      [&](const Group& group) {
        const HeadProblem h = heads.head_problem(group);
        const Tensor o_of_group = heads.of_queries(given, group);
        return kind_ == OracleKind::eigen ? eigen_head_given_output(h, o_of_group) : torch_heads_given_output(h, o_of_group);
      },
      [&](const Group& group, const HeadGradients& a) {
        heads.place_queries(a.dq, group, out.dq.value);
        heads.place_queries(a.dq_variance, group, out.dq.variance);
        add_share(heads, group, a.dk, a.dk_variance, out.dk);
      });
  finish_sum(heads, reference.dk.variance.narrow(-1, 0, 1).to(heads.device()) != 0, out.dk);
  add_allowance(out.dq);
  if (!of_q_.defined()) {
    of_k_ = correlations2(tokens_of(inputs_.k, inputs_.k_rows, p.hkv, p.d), p.hkv).to(heads.device());
    of_q_ = correlations2(tokens_of(inputs_.q, inputs_.q_rows, p.hq, p.d), p.hkv).to(heads.device());
  }
  out.dq.freedom = at::minimum(reference.dq.freedom.to(heads.device()),
                               independent_channels(heads.rounding(), out.dq, of_k_.repeat_interleave(p.group())));
  out.dk.freedom = at::minimum(reference.dk.freedom.to(heads.device()), independent_channels(heads.rounding(), out.dk, of_q_));
  for (Expected* x : {&out.dq, &out.dk}) move(*x, inputs_.q.device());
  return out;
}

}  // namespace attnbench
