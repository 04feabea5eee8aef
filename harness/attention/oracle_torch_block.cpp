#include "harness/attention/oracle_torch_block.hpp"

#include <algorithm>
#include <cmath>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include "harness/attention/tokens.hpp"

namespace attnbench::torch_oracle {
namespace {

/// Elements of S in a block: on a CPU a few such matrices stay near the core, on a GPU they keep it busy.
constexpr int64_t kCpuBlockElements = 1 << 20, kGpuBlockElements = 1 << 23;
constexpr int64_t kMostCpuRows = 128;

/// The largest |log P| of an fp32 P.
constexpr double kDeepest = 104;

/// By query of the sequence; rows up to the longest sequence's read nothing.
std::vector<Stretch> read_keys(const HeadProblem& h, const SequenceOfHeads& sequence) {
  const int64_t shift = h.problem->align == Align::top_left ? 0 : sequence.keys - sequence.queries;
  const bool fills = h.empty_row != Conventions::EmptyRow::zero;
  std::vector<Stretch> stretches;
  for (int64_t i = 0; i < sequence.queries; ++i) {
    int64_t lowest = 0, highest = sequence.keys - 1;
    if (h.problem->mask == Mask::causal) highest = std::min(highest, i + shift);
    if (const auto& window = h.problem->window) {
      if (window->left >= 0) lowest = std::max(lowest, i + shift - window->left);
      if (window->right >= 0) highest = std::min(highest, i + shift + window->right);
    }
    const bool empty = highest < lowest;
    stretches.push_back(empty ? Stretch{0, fills ? sequence.stored_keys : 0, true} : Stretch{lowest, highest + 1, false});
  }
  stretches.resize(h.queries, Stretch{0, 0, true});
  return stretches;
}

/// 1 for a key that some row reads, else 0.
std::vector<int64_t> keys_read(const std::vector<Stretch>& stretches, int64_t keys, bool by_empty_rows) {
  std::vector<int64_t> read(keys + 1, 0);
  for (const Stretch& s : stretches)
    if (by_empty_rows || !s.empty) ++read[s.begin], --read[s.end];
  for (int64_t j = 0, open = 0; j < keys; ++j) read[j] = (open += read[j]) > 0;
  read.pop_back();
  return read;
}

}  // namespace

Blocks::Blocks(const HeadProblem& h)
    : h_(h), r_(h.rounding), s2_(h.scale * h.scale), options_(h.q.options()), Q_(h.q), K_(h.k), V_(h.v), G_(h.dout) {
  std::vector<int64_t> begin, end, empty, shifts, seen;
  for (const SequenceOfHeads& sequence : h.sequences) {
    stretches_.push_back(read_keys(h, sequence));
    for (const Stretch& s : stretches_.back()) begin.push_back(s.begin), end.push_back(s.end), empty.push_back(s.empty);
    shifts.push_back(h.problem->align == Align::top_left ? 0 : sequence.keys - sequence.queries);
    const std::vector<int64_t> read = keys_read(stretches_.back(), h.stored_keys, true);
    seen.insert(seen.end(), read.begin(), read.end());
  }
  begin_ = of_heads(begin, h.queries);
  end_ = of_heads(end, h.queries);
  empty_ = of_heads(empty, h.queries) != 0;
  shift_ = of_heads(shifts, 1).to(at::kDouble);
  key_seen_ = to_tensor(seen, options_.device()).view({static_cast<int64_t>(h.sequences.size()), h.stored_keys}) != 0;
  if (h.empty_row == Conventions::EmptyRow::nan || h.sequences.size() > 1) hide_unread_keys();
}

Tensor Blocks::of_heads(const std::vector<int64_t>& of_sequences, int64_t rows) const {
  const auto sequences = static_cast<int64_t>(h_.sequences.size());
  const Tensor numbers = to_tensor(of_sequences, options_.device()).view({sequences, rows, 1});
  return sequences == 1 ? numbers : numbers.repeat_interleave(h_.heads / sequences, 0);
}

/// Keys that no query sees may hold NaN, which a probability of 0 does not cancel. No block reaches them but one with an empty
/// row that is NaN whatever it reads, and one of several sequences, of which another one reads on.
void Blocks::hide_unread_keys() {
  const bool by_empty_rows = h_.empty_row != Conventions::EmptyRow::nan;
  std::vector<int64_t> read;
  for (const auto& stretches : stretches_) {
    const std::vector<int64_t> keys = keys_read(stretches, h_.stored_keys, by_empty_rows);
    read.insert(read.end(), keys.begin(), keys.end());
  }
  const Tensor seen = of_heads(read, h_.stored_keys) != 0;
  K_ = at::where(seen, K_, 0.0);
  V_ = at::where(seen, V_, 0.0);
}

int64_t Blocks::step() const {
  const bool cpu = options_.device().is_cpu();
  const int64_t elements = cpu ? kCpuBlockElements : kGpuBlockElements;
  const int64_t rows = std::max<int64_t>(elements / std::max<int64_t>(h_.stored_keys * h_.heads, 1), 16);
  return cpu ? std::min(rows, kMostCpuRows) : rows;
}

Block Blocks::block(int64_t first) const {
  Block b;
  b.first = first;
  b.rows = std::min(step(), h_.queries - first);
  int64_t lowest = h_.stored_keys, highest = 0;
  for (const auto& stretches : stretches_) {
    for (int64_t i = first; i < first + b.rows; ++i) {
      const Stretch& s = stretches[i];
      if (!s.reads()) continue;
      lowest = std::min(lowest, s.begin);
      highest = std::max(highest, s.end);
      b.fills = b.fills || s.empty;
      b.has_single = b.has_single || (!s.empty && s.end - s.begin == 1 && h_.sinks.empty());
    }
  }
  b.key = std::min(lowest, highest);
  b.keys = highest - b.key;
  if (b.keys > 0) softmax(b);
  return b;
}

/// S becomes c tanh(S / c); in A what is left of the products' error, and tanh's.
void Blocks::cap(Block& b, Tensor& A) const {
  const double c = h_.problem->softcap;
  const Tensor t = (b.S / c).tanh();
  b.J = t.square().neg().add_(1);
  if (r_.scores) b.kT = t * b.J * (-2 / c);
  b.eJ2 = (A * b.J * t.abs()).mul_(2 * r_.k_scores / c).add_(4).mul_(r_.e).square_();
  b.S = t * c;
  A = A * b.J + b.S.abs() * (4 / r_.k_scores);
}

/// ALiBi's bias, its rounding and that of the sum.
void Blocks::add_bias(Block& b, Tensor& A) const {
  const Tensor i = at::arange(b.first, b.first + b.rows, options_).unsqueeze(1) + shift_;
  const Tensor j = at::arange(b.key, b.key + b.keys, options_).unsqueeze(0);
  const Tensor bias = (i - j).abs() * by_head(h_.slopes);
  b.S.sub_(bias);
  A.add_(bias, 2 / r_.k_scores).add_(b.S.abs(), 1 / r_.k_scores);
}

Stored Blocks::round_near(const Tensor& x, const Tensor& doubt) const {
  const Tensor stored = x.to(r_.dtype == Dtype::bf16 ? at::kBFloat16 : at::kHalf).to(at::kDouble);
  const Tensor overflows = (stored.abs() < kInfinity).logical_not_();
  // A power of two that may lie between brings the ties below it closer.
  const Tensor least = spacing(r_.dtype, (x.abs() - doubt).clamp_min_(0)), most = spacing(r_.dtype, x.abs() + doubt);
  const Tensor known = (least / 2 - (x - stored).abs() > doubt).logical_or_(overflows);
  return {at::where(overflows, x, stored), most.square_().div_(2).masked_fill_(known, 0)};
}

Stored Blocks::scaled(Stored x) const {
  x.value.mul_(h_.scale), x.variance.mul_(s2_);
  const Tensor doubt = x.value.abs().mul_(kCertain * r_.e).add_((x.variance * 2).sqrt_());
  const Stored product = round_near(x.value, doubt);
  return {product.value, x.variance.add_(product.variance)};
}

/// Q K^T is stored, then s times that.
void Blocks::store_products(Block& b) const {
  const Tensor terms = b.Q.abs().matmul(b.K.abs().mT());
  const Stored T = scaled(round_near(b.Q.matmul(b.K.mT()), terms.mul_(kCertain * r_.e * r_.k_scores)));
  b.S = T.value, b.vT = T.variance;
}

Tensor Blocks::score_by_product(const Block& b) const {
  const Tensor slope = b.J.defined() ? b.J : at::ones({1, 1, 1}, options_);
  return b.fills ? slope.masked_fill(b.filled, 0) : slope;
}

/// P M is stored; P itself is as uncertain as the stored products and an fp32 softmax of them.
void Blocks::store_probabilities(Block& b) const {
  b.vT = b.vT.masked_fill(b.unread, 0);
  b.vS = b.vT * score_by_product(b).square();
  const Tensor depth = b.P.log().abs_().clamp_max_(kDeepest).add_(b.n.sqrt());
  b.eS2 = b.eS2.sqrt().add_(depth, r_.e).square_().masked_fill_(b.P == 0, 0);
  b.shifted = (b.P2 * b.vS).mul_(kAlone);
  const Tensor doubt = (b.P2 * b.eS2 + b.shifted + b.P2 * b.shifted.sum(-1, true)).sqrt_().mul_(kCertain);
  const Stored weights = b.M.defined() ? round_near(b.PM, doubt * b.M) : round_near(b.P, doubt);
  b.PM = weights.value, b.PM2 = b.PM.square(), b.vP = weights.variance;
}

/// What the block reads, its scores and their softmax.
void Blocks::softmax(Block& b) const {
  const Tensor begin = of_rows(begin_, b), end = of_rows(end_, b);
  const Tensor j = at::arange(b.key, b.key + b.keys, options_.dtype(at::kLong));
  b.unread = (j < begin) | (j >= end);
  b.n = (end - begin).to(at::kDouble);
  b.reads_any = b.n > 0;
  b.filled = of_rows(empty_, b) & b.reads_any;
  b.Q = of_rows(Q_, b), b.G = of_rows(G_, b);
  b.K = of_keys(K_, b), b.V = of_keys(V_, b);

  Tensor A;
  if (r_.scores) {
    store_products(b);
    A = at::zeros_like(b.S);
  } else {
    b.S = b.Q.matmul(b.K.mT()).mul_(h_.scale);
    A = b.Q.abs().matmul(b.K.abs().mT()).mul_(std::abs(h_.scale));
  }
  if (h_.problem->softcap != 0) cap(b, A);
  if (!h_.slopes.empty()) add_bias(b, A);
  if (b.fills) {
    b.S.masked_fill_(b.filled, h_.empty_row == Conventions::EmptyRow::nan ? std::nan("") : 0);
    A.masked_fill_(b.filled, 0);
  }
  b.S.masked_fill_(b.unread, -kInfinity);
  Tensor largest = b.S.amax(-1, true), sinks;
  if (!h_.sinks.empty()) sinks = at::where(b.filled, -kInfinity, by_head(h_.sinks));
  if (sinks.defined()) largest = at::maximum(largest, sinks);
  b.m = at::where(b.reads_any, largest, 0.0);
  b.P = (b.S - b.m).exp_();
  Tensor sum = b.P.sum(-1, true);
  if (sinks.defined()) sum += (sinks - b.m).exp_();
  b.l = at::where(b.reads_any, sum, 1.0);
  b.P.div_(b.l);
  b.P2 = b.P.square();
  if (b.J.defined()) b.PJ = b.P * b.J;
  if (h_.factors.defined()) {
    b.M = of_rows(h_.factors, b).narrow(2, b.key, b.keys);
    b.PM = b.P * b.M;
    b.PM2 = b.PM.square();
  }
  b.L = b.m + b.l.log();
  b.sL = (b.L.abs() + 4 + (b.P * A).sum(-1, true) * r_.k_scores + b.n.sqrt()) * r_.e;
  b.eS2 = A.mul_(r_.k_scores * r_.e).add_(4 * r_.e).square_();
  b.eL2 = r_.accumulation > 0 ? b.sL.square() : ((b.L.abs() * 2 + 2) * r_.e).square();
  if (r_.scores) store_probabilities(b);
}

Tensor Blocks::largest_error2(const Block& b, const Tensor& x2, const Tensor& smallest2) const {
  if (r_.f == 0) return x2 * (r_.u * r_.u);
  return at::maximum(x2 * (r_.u * r_.u), smallest2).masked_fill_(b.unread, 0);
}

Tensor Blocks::weight_error2(const Block& b, const Tensor& smallest2) const {
  const Tensor h2 = largest_error2(b, b.weights2(), smallest2);
  return b.M.defined() ? h2.masked_fill(b.M == 0, 0) : h2;
}

}  // namespace attnbench::torch_oracle
