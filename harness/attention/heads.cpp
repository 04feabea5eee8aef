#include "harness/attention/heads.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/kept.hpp"
#include "harness/attention/tokens.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// Elements of one operand of a call to an oracle on a GPU: short heads go there together, long ones one by one.
constexpr int64_t kGpuCallElements = 1 << 22;

/// Sequences that go to a GPU together are as long as the longest there: so many scores more than they have, per head, are
/// cheaper than the launches of another call.
constexpr int64_t kFreeScores = 1 << 18;

/// Storage rows of a sequence's padding, read by uniform empty rows only.
std::vector<int64_t> padding_rows(const std::vector<int64_t>& real, int64_t begin, int64_t end, int64_t first, int64_t pitch) {
  std::vector<int64_t> rows;
  for (int64_t row = first; row < first + pitch; ++row)
    if (!std::binary_search(real.begin() + begin, real.begin() + end, row)) rows.push_back(row);
  return rows;
}

void refuse_unknown(const Case& c, const Inputs& inputs, const Rounding& rounding, Conventions::EmptyRow empty_row) {
  const Problem& p = c.problem;
  if (rounding.scores && rounding.d_from_output)
    throw std::invalid_argument("the float64 oracles know no profile that rounds scores and takes D from O: " + format_case(c));
  if (p.dropout.p != 0 && !inputs.kept.defined())
    throw std::invalid_argument("the float64 oracles replay a dropout, and have no mask: " + format_case(c));
  if (p.has_score_options() && empty_row == Conventions::EmptyRow::nan)
    throw std::invalid_argument("the float64 oracles know no softcap, alibi and sink beside empty rows of NaN: " +
                                format_case(c));
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

/// Of float64, or of a case's dtype.
Numbers numbers_of(const Tensor& tensor) {
  const at::ScalarType type = tensor.scalar_type();
  const Dtype dtype = type == at::kBFloat16 ? Dtype::bf16 : type == at::kHalf ? Dtype::fp16 : Dtype::fp32;
  return {tensor.const_data_ptr(), type == at::kDouble, dtype};
}

head_rows::Places places_of(const Tensor& tokens, const Tensor& places, int64_t longest, int64_t all_heads, const Group& group) {
  return {tokens.const_data_ptr<int64_t>(),
          places.const_data_ptr<int64_t>(),
          tokens.numel(),
          longest,
          all_heads,
          group.head,
          group.heads};
}

}  // namespace

head_rows::Places Group::queries(int64_t all_heads) const {
  return places_of(q_tokens, q_places, longest.queries, all_heads, *this);
}

head_rows::Places Group::keys(int64_t all_heads) const {
  return places_of(k_tokens, k_places, longest.stored_keys, all_heads, *this);
}

Heads::Heads(OracleKind kind, const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row)
    : problem_(c.problem),
      inputs_(inputs),
      empty_row_(empty_row),
      device_(kind == OracleKind::eigen ? at::kCPU : inputs.q.device()) {
  const Problem& p = problem_;
  rounding_ = rounding_of(profile, p);
  refuse_unknown(c, inputs, rounding_, empty_row);
  slopes_ = slopes_of(p);
  sinks_ = sinks_of(inputs);
  q_offsets_ = offsets_of(inputs.lengths.q);
  k_offsets_ = offsets_of(inputs.lengths.k);
  q_ = rows_of(inputs.q, inputs.q_rows, p.hq, p.d).to(device_);
  dout_ = rows_of(inputs.dout, inputs.q_rows, p.hq, p.dv).to(device_);
  reads_padding_ = p.layout == Layout::padded && empty_row == Conventions::EmptyRow::uniform;
  std::vector<int64_t> key_rows = inputs.k_rows, terms;
  const int64_t pitch = inputs.lengths.k_pitch;
  for (int64_t n = 0; n < static_cast<int64_t>(inputs.lengths.k.size()); ++n) {
    terms.insert(terms.end(), inputs.lengths.k[n], inputs.lengths.q[n] * p.group());
    if (!reads_padding_) continue;
    const auto rows = padding_rows(inputs.k_rows, k_offsets_[n], k_offsets_[n + 1], n * pitch, pitch);
    first_padding_.push_back(static_cast<int64_t>(key_rows.size()));
    key_rows.insert(key_rows.end(), rows.begin(), rows.end());
  }
  terms_of_keys_ = to_tensor(terms, device_);
  k_ = rows_of(inputs.k, key_rows, p.hkv, p.d).to(device_);
  v_ = rows_of(inputs.v, key_rows, p.hkv, p.dv).to(device_);
  for (int64_t n = 0; p.dropout.p != 0 && n < static_cast<int64_t>(inputs.lengths.k.size()); ++n)
    kept_.push_back(kept_of_sequence(inputs, n).narrow(2, 0, sequence(n).stored_keys).to(device_));
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
  const auto count = static_cast<int64_t>(sequences.size());
  const int64_t queries = group.longest.queries, stored = group.longest.stored_keys;
  std::vector<int64_t> q_tokens, k_tokens, q_places, k_places, q_token_at(count * queries, -1), k_token_at(count * stored, -1);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = sequences[i];
    const SequenceOfHeads s = sequence(n);
    for (int64_t row = 0; row < s.queries; ++row) {
      q_tokens.push_back(q_offsets_[n] + row);
      q_places.push_back(i * queries + row);
      q_token_at[q_places.back()] = q_tokens.back();
    }
    for (int64_t row = 0; row < s.keys; ++row) {
      k_tokens.push_back(k_offsets_[n] + row);
      k_places.push_back(i * stored + row);
      k_token_at[k_places.back()] = k_tokens.back();
    }
    for (int64_t row = s.keys; row < s.stored_keys; ++row) k_token_at[i * stored + row] = first_padding_[n] + row - s.keys;
  }
  group.sequences = std::move(sequences);
  group.head = head, group.heads = heads;
  const std::vector<Tensor> places = to_tensors({q_tokens, k_tokens, q_places, k_places, q_token_at, k_token_at}, device_);
  group.q_tokens = places[0], group.k_tokens = places[1];
  group.q_places = places[2], group.k_places = places[3];
  group.q_token_at = places[4], group.k_token_at = places[5];
  groups_.push_back(std::move(group));
}

/// Float64 [sequences x heads, longest, channels] of tokens that `per_head` query heads share.
Tensor Heads::gather(const Tensor& tokens, const Tensor& token_at, int64_t longest, int64_t per_head, const Group& group) const {
  const auto sequences = static_cast<int64_t>(group.sequences.size());
  const Tensor rows = at::empty({sequences * group.heads, longest, tokens.size(2)}, tokens.options().dtype(at::kDouble));
  head_rows::gather(tokens.is_cuda(),
                    {.tokens = numbers_of(tokens),
                     .token_at = token_at.const_data_ptr<int64_t>(),
                     .sequences = sequences,
                     .longest = longest,
                     .channels = tokens.size(2),
                     .all_heads = tokens.size(1),
                     .first = group.head,
                     .heads = group.heads,
                     .group = per_head},
                    data_of(rows));
  return rows;
}

/// Of [tokens, heads, channels].
Tensor Heads::correlations(const Tensor& tokens) const {
  const int64_t count = tokens.size(0), heads = tokens.size(1), channels = tokens.size(2);
  const at::TensorOptions options = tokens.options().dtype(at::kDouble);
  const Tensor rows = at::empty({problem_.hkv, heads / problem_.hkv * count, channels}, options);
  const Tensor correlated = at::empty({problem_.hkv}, options);
  head_rows::gather(tokens.is_cuda(),
                    {.tokens = numbers_of(tokens),
                     .sequences = 1,
                     .longest = count,
                     .channels = channels,
                     .all_heads = heads,
                     .heads = heads,
                     .nan_is_0 = true},
                    data_of(rows));
  const Tensor products = at::bmm(rows.mT(), rows);
  head_rows::correlate(tokens.is_cuda(), data_of(products), problem_.hkv, channels, data_of(correlated));
  return correlated;
}

Tensor Heads::of_queries(const Tensor& tokens, const Group& group) const {
  return gather(tokens, group.q_token_at, group.longest.queries, 1, group);
}

/// Float64 [sequences x heads, longest queries, longest stored keys]; 0 beyond those of a shorter sequence.
Tensor Heads::factors_of(const Group& group) const {
  std::vector<Tensor> factors;
  for (const int64_t n : group.sequences) {
    const Tensor kept = kept_[n].narrow(0, group.head, group.heads);
    factors.push_back(
        at::zeros({group.heads, group.longest.queries, group.longest.stored_keys}, kept.options().dtype(at::kDouble)));
    factors.back().narrow(1, 0, kept.size(1)).narrow(2, 0, kept.size(2)).copy_(kept);
  }
  return at::cat(factors).div_(1 - problem_.dropout.p);
}

HeadProblem Heads::head_problem(const Group& group) const {
  HeadProblem h;
  h.q = of_queries(q_, group);
  h.dout = of_queries(dout_, group);
  h.k = gather(k_, group.k_token_at, group.longest.stored_keys, problem_.group(), group);
  h.v = gather(v_, group.k_token_at, group.longest.stored_keys, problem_.group(), group);
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
  if (!kept_.empty()) h.factors = factors_of(group);
  h.empty_row = empty_row_;
  h.rounding = rounding_;
  return h;
}

}  // namespace attnbench
