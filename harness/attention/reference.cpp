// Gathers the real tokens of a case, asks an oracle about every head and sums over the heads of a group.
#include "harness/attention/reference.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <utility>
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

/// Sequences that go to a GPU together are as long as the longest there: so many scores more than they have, per head, are
/// cheaper than the launches of another call.
constexpr int64_t kFreeScores = 1 << 18;

/// Query heads [head, head + heads) of some sequences, which an oracle is asked about at once.
struct Group {
  std::vector<int64_t> sequences;  ///< ascending
  int64_t head = 0, heads = 0;     ///< of each sequence
  SequenceOfHeads longest;         ///< in each respect
  Tensor q_tokens, k_tokens;       ///< int64: which of the case's tokens are theirs
  Tensor q_places, k_places;       ///< int64: where those lie in rows [sequence, up to the longest]
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
  /// int64 [heads]: the key head of each query head of the group.
  Tensor key_heads(const Group& group) const;

  HeadProblem head_problem(const Group& group) const;
  /// Its part of a tensor over queries [tokens, hq, channels]: float64 [sequences x heads, queries, channels].
  Tensor of_queries(const Tensor& tokens, const Group& group) const;
  /// Writes an answer [sequences x heads, queries, …] to its place in a tensor over queries [tokens, hq, …].
  void place_queries(const Tensor& rows, const Group& group, const Tensor& tokens) const;
  /// An answer over keys [sequences x heads, stored keys, …] as [real tokens of the group, heads, …].
  Tensor key_tokens(const Tensor& rows, const Group& group) const;
  /// Queries x group heads that a row of dk or dv sums over: float64 [tokens, 1, 1].
  Tensor terms_of_keys() const;

 private:
  SequenceOfHeads sequence(int64_t n) const;
  void make_groups();
  void add_group(std::vector<int64_t> sequences, int64_t head, int64_t heads);
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
  bool reads_padding_ = false;
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

/// Those of the group's heads, of each sequence.
std::vector<double> part_of(const std::vector<double>& by_head, const Group& group) {
  std::vector<double> part;
  for (size_t n = 0; n < group.sequences.size() && !by_head.empty(); ++n)
    part.insert(part.end(), by_head.begin() + group.head, by_head.begin() + group.head + group.heads);
  return part;
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
  reads_padding_ = p.layout == Layout::padded && empty_row == Conventions::EmptyRow::uniform;
  const int64_t pitch = inputs.lengths.k_pitch;
  for (int64_t n = 0; reads_padding_ && n < static_cast<int64_t>(inputs.lengths.k.size()); ++n) {
    const auto rows = padding_rows(inputs.k_rows, k_offsets_[n], k_offsets_[n + 1], n * pitch, pitch);
    k_padding_.push_back(rows_of(inputs.k, rows, p.hkv, p.d).to(device_));
    v_padding_.push_back(rows_of(inputs.v, rows, p.hkv, p.dv).to(device_));
  }
  make_groups();
}

SequenceOfHeads Heads::sequence(int64_t n) const {
  const int64_t keys = inputs_.lengths.k[n];
  return {inputs_.lengths.q[n], keys, reads_padding_ ? inputs_.lengths.k_pitch : keys};
}

/// On a CPU head by head, for its cores. On a GPU sequences of about the same length together.
void Heads::make_groups() {
  const auto count = static_cast<int64_t>(inputs_.lengths.q.size());
  const auto elements = [&](const SequenceOfHeads& s) {
    return std::max<int64_t>(s.queries + s.stored_keys, 1) * std::max(problem_.d, problem_.dv);
  };
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (!device_.is_cpu())
    std::ranges::stable_sort(order, std::greater{}, [&](int64_t n) { return std::pair(sequence(n).keys, sequence(n).queries); });
  std::vector<int64_t> together;
  SequenceOfHeads longest;
  int64_t scores = 0;
  const auto close = [&] {
    if (!together.empty()) add_group(std::exchange(together, {}), 0, problem_.hq);
    longest = {}, scores = 0;
  };
  for (const int64_t n : order) {
    const SequenceOfHeads s = sequence(n);
    const int64_t most = device_.is_cpu() ? 1 : std::clamp<int64_t>(kGpuCallElements / elements(s), 1, problem_.hq);
    if (most < problem_.hq) {
      for (int64_t head = 0; head < problem_.hq; head += most) add_group({n}, head, std::min(most, problem_.hq - head));
      continue;
    }
    const SequenceOfHeads grown{std::max(longest.queries, s.queries), std::max(longest.keys, s.keys),
                                std::max(longest.stored_keys, s.stored_keys)};
    const auto sequences = static_cast<int64_t>(together.size()) + 1;
    const int64_t idle = sequences * grown.queries * grown.stored_keys - scores - s.queries * s.stored_keys;
    if (device_.is_cpu() || idle > kFreeScores || sequences * problem_.hq * elements(grown) > kGpuCallElements) {
      close();
      longest = s;
    } else {
      longest = grown;
    }
    together.push_back(n);
    scores += s.queries * s.stored_keys;
  }
  close();
}

void Heads::add_group(std::vector<int64_t> sequences, int64_t head, int64_t heads) {
  Group group;
  std::ranges::sort(sequences);
  for (const int64_t n : sequences) {
    const SequenceOfHeads s = sequence(n);
    group.longest.queries = std::max(group.longest.queries, s.queries);
    group.longest.keys = std::max(group.longest.keys, s.keys);
    group.longest.stored_keys = std::max(group.longest.stored_keys, s.stored_keys);
  }
  std::vector<int64_t> q_tokens, k_tokens, q_places, k_places;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const SequenceOfHeads s = sequence(sequences[i]);
    for (int64_t row = 0; row < s.queries; ++row) {
      q_tokens.push_back(q_offsets_[sequences[i]] + row);
      q_places.push_back(static_cast<int64_t>(i) * group.longest.queries + row);
    }
    for (int64_t row = 0; row < s.keys; ++row) {
      k_tokens.push_back(k_offsets_[sequences[i]] + row);
      k_places.push_back(static_cast<int64_t>(i) * group.longest.stored_keys + row);
    }
  }
  group.sequences = std::move(sequences);
  group.head = head, group.heads = heads;
  group.q_tokens = to_tensor(q_tokens, device_), group.k_tokens = to_tensor(k_tokens, device_);
  group.q_places = to_tensor(q_places, device_), group.k_places = to_tensor(k_places, device_);
  groups_.push_back(std::move(group));
}

/// Tokens [tokens, heads, channels] in rows: float64 [sequences x heads, longest, channels]; other rows are 0.
Tensor in_rows(const Tensor& tokens, const Tensor& places, int64_t sequences, int64_t longest) {
  const int64_t heads = tokens.size(1), channels = tokens.size(2);
  return at::zeros({sequences * longest, heads, channels}, tokens.options().dtype(at::kDouble))
      .index_copy_(0, places, tokens.to(at::kDouble))
      .view({sequences, longest, heads, channels})
      .transpose(1, 2)
      .reshape({sequences * heads, longest, channels})
      .contiguous();
}

/// The other way: rows [sequences x heads, longest, …] to tokens [tokens, heads, …].
Tensor to_tokens(const Tensor& rows, const Tensor& places, int64_t heads) {
  return rows.unflatten(0, {-1, heads}).transpose(1, 2).flatten(0, 1).index_select(0, places);
}

Tensor Heads::of_queries(const Tensor& tokens, const Group& group) const {
  return in_rows(tokens.narrow(1, group.head, group.heads).index_select(0, group.q_tokens), group.q_places,
                 static_cast<int64_t>(group.sequences.size()), group.longest.queries);
}

void Heads::place_queries(const Tensor& rows, const Group& group, const Tensor& tokens) const {
  tokens.narrow(1, group.head, group.heads).index_copy_(0, group.q_tokens, to_tokens(rows, group.q_places, group.heads));
}

Tensor Heads::key_tokens(const Tensor& rows, const Group& group) const {
  return to_tokens(rows, group.k_places, group.heads);
}

Tensor Heads::key_heads(const Group& group) const {
  std::vector<int64_t> heads;
  for (int64_t head = group.head; head < group.head + group.heads; ++head) heads.push_back(head / problem_.group());
  return to_tensor(heads, device());
}

/// Float64 [sequences x heads, stored keys, channels]: for each query head its key head, real keys first.
Tensor Heads::keys_of(const Tensor& real, const std::vector<Tensor>& padding, const Group& group) const {
  std::vector<Tensor> tokens{real.index_select(0, group.k_tokens)};
  std::vector<int64_t> places;
  for (size_t i = 0; !padding.empty() && i < group.sequences.size(); ++i) {
    tokens.push_back(padding[group.sequences[i]]);
    for (int64_t row = inputs_.lengths.k[group.sequences[i]]; row < group.longest.stored_keys; ++row)
      places.push_back(static_cast<int64_t>(i) * group.longest.stored_keys + row);
  }
  return in_rows(at::cat(tokens).index_select(1, key_heads(group)), at::cat({group.k_places, to_tensor(places, device())}),
                 static_cast<int64_t>(group.sequences.size()), group.longest.stored_keys);
}

HeadProblem Heads::head_problem(const Group& group) const {
  HeadProblem h;
  h.q = of_queries(q_, group);
  h.dout = of_queries(dout_, group);
  h.k = keys_of(k_, k_padding_, group);
  h.v = keys_of(v_, v_padding_, group);
  for (const int64_t n : group.sequences) h.sequences.push_back(sequence(n));
  h.heads = h.q.size(0);
  h.queries = group.longest.queries;
  h.keys = group.longest.keys;
  h.stored_keys = group.longest.stored_keys;
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

/// to [tokens, key heads, …] += share [tokens of the group, heads, …].
void add_to_key_heads(const Tensor& to, const Group& group, const Tensor& key_heads, const Tensor& share) {
  to.index_copy_(0, group.k_tokens, to.index_select(0, group.k_tokens).index_add_(1, key_heads, share));
}

/// Adds each head's share of dk or dv to its key head, with the rounding of the partial sum where the profile rounds it.
void add_share(const Heads& heads, const Group& group, const Tensor& value, const Tensor& variance, Expected& to) {
  const Tensor share = heads.key_tokens(value, group), key_heads = heads.key_heads(group);
  Tensor of_share = heads.key_tokens(variance, group);
  if (heads.rounding().gqa_partials) of_share = of_share + rounding_variance(heads.rounding(), share.contiguous());
  add_to_key_heads(to.value, group, key_heads, share);
  add_to_key_heads(to.variance, group, key_heads, of_share);
}

/// The same for sums without a variance.
void add_sums(const Heads& heads, const Group& group, const Tensor& sums, const Tensor& to) {
  add_to_key_heads(to, group, heads.key_heads(group), heads.key_tokens(sums, group));
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
  Tensor samples() const;

  const Heads& heads_;
  Reference out_;
  Tensor p2_, p4_, ds2_, ds4_, seen_, has_power_;
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
  has_power_.logical_and_(a.has_power);
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
  out_.dk.freedom = sources(ds2_, ds4_, p.d);
  out_.dv.freedom = sources(p2_, p4_, p.dv);
  out_.has_power = has_power_.item<bool>();
  out_.distinct_scores = kInfinity;
  if (heads_.rounding().p && !sampled_heads_.empty()) out_.distinct_scores = distinct_scores(samples());
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
        const Tensor o_of_group = heads.of_queries(given, group);
        return kind == OracleKind::eigen ? eigen_head_given_output(h, o_of_group) : torch_heads_given_output(h, o_of_group);
      },
      [&](const Group& group, const HeadGradients& a) {
        heads.place_queries(a.dq, group, out.dq.value);
        heads.place_queries(a.dq_variance, group, out.dq.variance);
        add_share(heads, group, a.dk, a.dk_variance, out.dk);
      });
  finish_sum(heads, reference.dk.variance.narrow(-1, 0, 1).to(heads.device()) != 0, out.dk);
  add_allowance(out.dq);
  for (Expected* x : {&out.dq, &out.dk}) move(*x, inputs.q.device());
  return out;
}

}  // namespace attnbench
