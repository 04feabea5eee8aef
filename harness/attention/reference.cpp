// Asks an oracle about every head of a case and sums over the heads of a group.
#include "harness/attention/reference.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/where.h>

#include "harness/attention/head_rows.hpp"
#include "harness/attention/heads.hpp"
#include "harness/attention/oracle.hpp"
#include "harness/attention/parallel.hpp"
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

void move(Expected& x, c10::Device device) {
  for (Tensor* t : {&x.value, &x.variance, &x.allowance, &x.freedom})
    if (t->defined()) *t = t->to(device);
}

/// Values over queries: every token is written.
Expected over_queries(const Heads& heads, int64_t channels) {
  const at::TensorOptions options = at::TensorOptions(at::kDouble).device(heads.device());
  const int64_t all = heads.problem().hq;
  Expected x;
  for (Tensor* t : {&x.value, &x.variance}) *t = at::empty({heads.queries(), all, channels}, options);
  x.freedom = at::empty({heads.queries(), all}, options);
  return x;
}

/// Sums over the heads of a group, from 0 on; `others`: so many that a token and key head have one of.
struct KeySums {
  KeySums(const Heads& heads, int64_t channels, bool has_allowance = false, size_t others = 0) {
    const std::vector<int64_t> one{heads.keys(), heads.problem().hkv}, many{one[0], one[1], channels};
    std::vector<std::vector<int64_t>> sizes(has_allowance ? 3 : 2, many);
    sizes.insert(sizes.end(), others, one);
    std::vector<Tensor> all = zeros_together(sizes, at::TensorOptions(at::kDouble).device(heads.device()));
    x.value = all[0], x.variance = all[1];
    if (has_allowance) x.allowance = all[2];
    x.freedom = at::empty(one, x.value.options());
    all.erase(all.begin(), all.end() - static_cast<int64_t>(others));
    of_heads = std::move(all);
  }

  Expected x;
  std::vector<Tensor> of_heads;
};

/// seen: of each token and key head, `stride` doubles apart; 0: no query reads the key.
head_rows::Sum sum_of(const Heads& heads, const Expected& x, const Tensor& seen, int64_t stride) {
  return {.value = data_of(x.value),
          .variance = data_of(x.variance),
          .allowance = data_of(x.allowance),
          .tokens = heads.keys(),
          .heads = heads.problem().hkv,
          .channels = x.value.size(2),
          .spacing = spacing_of(heads.rounding().dtype),
          .accumulation = heads.rounding().accumulation,
          .terms = heads.terms_of_keys().const_data_ptr<int64_t>(),
          .seen = data_of(seen),
          .seen_stride = stride};
}

/// Collects the heads' answers, in the order of the heads.
class Collector {
 public:
  explicit Collector(const Heads& heads);
  void add(const Group& group, const HeadAnswer& a);
  Reference finish();

 private:
  void place_queries(const Group& group, const HeadAnswer& a);
  void add_keys(const Group& group, const HeadAnswer& a);
  void finish(Expected& x, const Tensor& sum2, const Tensor& sum4) const;
  Tensor samples() const;

  const Heads& heads_;
  Reference out_;
  Tensor p2_, p4_, ds2_, ds4_, seen_;  ///< [tokens, key heads]
  std::vector<Tensor> samples_;
  std::vector<int64_t> sampled_heads_;  ///< by sequence and head
};

Collector::Collector(const Heads& heads) : heads_(heads) {
  const Problem& p = heads.problem();
  out_.o = over_queries(heads, p.dv);
  out_.lse = over_queries(heads, 1);
  out_.lse.freedom.fill_(1);
  out_.dq = over_queries(heads, p.d);
  out_.dq.allowance = at::empty_like(out_.dq.value);
  const KeySums dk(heads, p.d, /*has_allowance=*/true, /*others=*/5);
  out_.dk = dk.x, out_.dv = KeySums(heads, p.dv).x;
  p2_ = dk.of_heads[0], p4_ = dk.of_heads[1], ds2_ = dk.of_heads[2], ds4_ = dk.of_heads[3], seen_ = dk.of_heads[4];
}

void Collector::add(const Group& group, const HeadAnswer& a) {
  samples_.push_back(a.score_samples);
  for (const int64_t i : a.sampled_heads)
    sampled_heads_.push_back(group.sequences[i / group.heads] * heads_.problem().hq + group.head + i % group.heads);
  place_queries(group, a);
  add_keys(group, a);
}

void Collector::place_queries(const Group& group, const HeadAnswer& a) {
  const int64_t d = heads_.problem().d, dv = heads_.problem().dv;
  const head_rows::Moves moves{
      {{data_of(a.o), data_of(out_.o.value), dv},
       {data_of(a.o_variance), data_of(out_.o.variance), dv},
       {data_of(a.o_freedom), data_of(out_.o.freedom)},
       {data_of(a.lse), data_of(out_.lse.value)},
       {.from = data_of(a.lse_sigma), .to = data_of(out_.lse.variance), .squared = true},
       {data_of(a.dq), data_of(out_.dq.value), d},
       {.from = data_of(a.dq_variance), .to = data_of(out_.dq.variance), .channels = d, .allowance = data_of(a.dq_allowance)},
       {data_of(a.dq_allowance), data_of(out_.dq.allowance), d},
       {data_of(a.dq_freedom), data_of(out_.dq.freedom)}},
      head_rows::Moves::kMost};
  head_rows::place(heads_.device().is_cuda(), group.queries(heads_.problem().hq), moves);
}

/// Adds each head's share to its key head, with the rounding of the partial sum where the profile rounds it.
void Collector::add_keys(const Group& group, const HeadAnswer& a) {
  const int64_t d = heads_.problem().d, dv = heads_.problem().dv;
  const bool rounds = heads_.rounding().gqa_partials;
  const head_rows::Shares shares{
      .share = {{data_of(a.dk), data_of(out_.dk.value), d},
                {data_of(a.dk_variance), data_of(out_.dk.variance), d, rounds ? data_of(a.dk) : nullptr},
                {data_of(a.dk_allowance), data_of(out_.dk.allowance), d},
                {data_of(a.dv), data_of(out_.dv.value), dv},
                {data_of(a.dv_variance), data_of(out_.dv.variance), dv, rounds ? data_of(a.dv) : nullptr},
                {data_of(a.p2), data_of(p2_)},
                {data_of(a.p4), data_of(p4_)},
                {data_of(a.ds2), data_of(ds2_)},
                {data_of(a.ds4), data_of(ds4_)}},
      .count = head_rows::Shares::kMost,
      .spacing = spacing_of(heads_.rounding().dtype),
      .group = heads_.problem().group(),
      .seen_in = a.key_seen.const_data_ptr<bool>(),
      .seen = data_of(seen_)};
  head_rows::add_shares(heads_.device().is_cuda(), group.keys(heads_.problem().hq), shares);
}

/// The first that give enough, in the order of sequences and heads.
Tensor Collector::samples() const {
  std::vector<int64_t> order(sampled_heads_.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](int64_t i) { return sampled_heads_[i]; });
  order.resize(std::min<size_t>(order.size(), kScoreSamples));
  return at::cat(samples_).index_select(0, to_tensor(order, heads_.device()));
}

void Collector::finish(Expected& x, const Tensor& sum2, const Tensor& sum4) const {
  head_rows::Sum sum = sum_of(heads_, x, seen_, 1);
  const bool replayed = heads_.rounding().scores;
  if (!replayed) sum.sum2 = data_of(sum2), sum.sum4 = data_of(sum4);
  sum.freedom = data_of(x.freedom);
  head_rows::finish(heads_.device().is_cuda(), sum);
}

Reference Collector::finish() {
  finish(out_.dk, ds2_, ds4_);
  finish(out_.dv, p2_, p4_);
  if (heads_.rounding().p && !heads_.rounding().scores && !sampled_heads_.empty())
    out_.sorted_scores = sorted_rows(samples().unsqueeze(0));
  return std::move(out_);
}

}  // namespace

std::string_view name_of(OracleKind kind) {
  return kind == OracleKind::eigen ? "eigen" : "torch";
}

/// Where fewer than half of them are distinct: of integer data equal scores round alike.
double distinct_scores(const Reference& reference) {
  constexpr int64_t kFew = 64;
  if (!reference.sorted_scores.defined() || reference.sorted_scores.numel() <= kFew) return kInfinity;
  const Tensor sorted = reference.sorted_scores.to(at::kCPU);
  const std::span samples(sorted.const_data_ptr<double>(), static_cast<size_t>(sorted.numel()));
  size_t distinct = 1;
  for (size_t i = 1; i < samples.size(); ++i) distinct += samples[i] - samples[i - 1] > 1e-6 * (1 + std::abs(samples[i]));
  return 2 * distinct < samples.size() ? static_cast<double>(distinct) : kInfinity;
}

Oracle::Oracle(OracleKind kind, const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row)
    : kind_(kind), inputs_(inputs), heads_(std::make_unique<const Heads>(kind, c, inputs, profile, empty_row)) {}

Oracle::~Oracle() = default;

HeadProblem Oracle::head_problem(const Group& group) const {
  if (heads_->groups().size() > 1) return heads_->head_problem(group);
  if (!whole_) whole_ = std::make_unique<const HeadProblem>(heads_->head_problem(group));
  return *whole_;
}

Reference Oracle::reference() const {
  Collector collector(*heads_);
  for_each_answer<HeadAnswer>(
      *heads_,
      [&](const Group& group) {
        const HeadProblem h = head_problem(group);
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
  if (!heads.rounding().conditional())
    throw std::invalid_argument("gradients given O, of a profile whose D does not come from O");
  const Tensor kernels = tokens_of(o, inputs_.q_rows, p.hq, p.dv);
  // What is not finite fails as O; it must not excuse the gradients.
  const Tensor given = at::where(kernels.abs() < kInfinity, kernels, reference.o.value).to(heads.device());
  const bool on_gpu = heads.device().is_cuda(), rounds = heads.rounding().gqa_partials;
  const Spacing spacing = spacing_of(heads.rounding().dtype);
  ConditionalGradients out{over_queries(heads, p.d), KeySums(heads, p.d).x};
  for_each_answer<HeadGradients>(
      heads,
      [&](const Group& group) {
        const HeadProblem h = head_problem(group);
        const Tensor o_of_group = heads.of_queries(given, group);
        return kind_ == OracleKind::eigen ? eigen_head_given_output(h, o_of_group) : torch_heads_given_output(h, o_of_group);
      },
      [&](const Group& group, const HeadGradients& a) {
        head_rows::place(
            on_gpu, group.queries(p.hq),
            {{{data_of(a.dq), data_of(out.dq.value), p.d}, {data_of(a.dq_variance), data_of(out.dq.variance), p.d}}, 2});
        head_rows::add_shares(
            on_gpu, group.keys(p.hq),
            {.share = {{data_of(a.dk), data_of(out.dk.value), p.d},
                       {data_of(a.dk_variance), data_of(out.dk.variance), p.d, rounds ? data_of(a.dk) : nullptr}},
             .count = 2,
             .spacing = spacing,
             .group = p.group()});
      });
  out.dq.allowance = reference.dq.allowance.to(heads.device());
  out.dk.allowance = reference.dk.allowance.to(heads.device());
  const Tensor seen = reference.dk.variance.to(heads.device());  // 0 where no query reads the key
  head_rows::finish(on_gpu, sum_of(heads, out.dk, seen, p.d));
  if (!of_q_.defined()) {
    of_k_ = heads.correlations_of_keys();
    of_q_ = heads.correlations_of_queries();
  }
  const auto limit_freedom = [&](Expected& x, const Tensor& correlated, int64_t group, const Tensor& most,
                                 const Tensor& allowance) {
    head_rows::limit_freedom(on_gpu, {.value = data_of(x.value),
                                      .variance = data_of(x.variance),
                                      .allowance = data_of(allowance),
                                      .tokens = x.value.size(0),
                                      .heads = x.value.size(1),
                                      .channels = x.value.size(2),
                                      .spacing = spacing,
                                      .correlated = data_of(correlated),
                                      .group = group,
                                      .most = data_of(most),
                                      .freedom = data_of(x.freedom)});
  };
  const Tensor most_dq = reference.dq.freedom.to(heads.device()), most_dk = reference.dk.freedom.to(heads.device());
  limit_freedom(out.dq, of_k_, p.group(), most_dq, out.dq.allowance);
  limit_freedom(out.dk, of_q_, 1, most_dk, Tensor());  // whose allowance finish() has added
  for (Expected* x : {&out.dq, &out.dk}) move(*x, inputs_.q.device());
  return out;
}

}  // namespace attnbench
