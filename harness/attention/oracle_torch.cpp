// The oracle in LibTorch: float64 tensor operations on any device, on heads of several sequences at once, in blocks of query
// rows against the keys that they read. Letters and formulas: error_model.hpp.
// Dimensions: [heads, rows, keys or channels]; what a row has one of is [heads, rows, 1]. Masks are [1, rows, …] where there is
// one sequence.
// A block launches work and never waits for it: what decides the way of the program is computed on the host.
#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "harness/attention/oracle.hpp"
#include "harness/attention/tokens.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// Elements of S in a block: on a CPU a few such matrices stay near the core, on a GPU they keep it busy.
constexpr int64_t kCpuBlockElements = 1 << 20, kGpuBlockElements = 1 << 23;
constexpr int64_t kMostCpuRows = 128;
constexpr int64_t kSampledKeys = 16;

/// Deviations beyond which no error is expected: what lies nearer to a tie is uncertain. The largest |log P| of an fp32 P.
constexpr double kCertain = 4, kDeepest = 104;

/// What an uncertain S does to its own key and what it does to the others may cancel, but the next rounding may swallow the
/// latter: three such squares, each by itself, bound their sum.
constexpr double kAlone = 3;

/// The keys [begin, end) that a query reads. An empty row, which sees none, reads none or all that are stored.
struct Stretch {
  int64_t begin = 0, end = 0;
  bool empty = false;
  bool reads() const { return begin < end; }
};

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

/// The first key of a row that is sampled; every 16th follows.
int64_t first_sample(const Stretch& s, int64_t row) {
  return s.begin + row * 7 % kSampledKeys;
}

int64_t samples_of(const std::vector<Stretch>& stretches) {
  int64_t count = 0;
  for (size_t i = 0; i < stretches.size() && count < kScoreSamples; ++i) {
    const int64_t keys = stretches[i].end - first_sample(stretches[i], static_cast<int64_t>(i));
    if (!stretches[i].empty && keys > 0) count += (keys + kSampledKeys - 1) / kSampledKeys;
  }
  return count;
}

class TorchHeads {
 public:
  explicit TorchHeads(const HeadProblem& h);
  HeadAnswer answer();
  HeadGradients given_output(const Tensor& o);

 private:
  /// Rows [first, first + rows) against keys [key, key + keys), the fewest that hold all that these rows read.
  struct Block {
    int64_t first = 0, rows = 0, key = 0, keys = 0;
    bool fills = false;       ///< some empty row reads all stored keys
    bool has_single = false;  ///< some row sees one key
    Tensor unread, filled;    ///< bool [1 or heads, rows, keys]: does not read the key; [..., 1]: empty and reads all
    Tensor reads_any, n;      ///< [1 or heads, rows, 1]: reads a key; how many, in float64
    Tensor Q, G;              ///< [heads, rows, channels]
    Tensor K, V;              ///< [heads, keys, channels]
    Tensor S, P, P2, eS2;     ///< [heads, rows, keys]; S is -inf where no key is read
    Tensor J, eJ2, PJ;        ///< softcap: derivative of S by what is capped, its error squared, P J; else undefined
    Tensor kT;                ///< softcap: dJ/dT; else undefined
    Tensor M, PM, PM2;        ///< dropout: what P is multiplied by, P M and its square; else undefined
    Tensor vT, vS, shifted;   ///< eager: variances of the replayed T = s q.k and of S, 3 P^2 of the latter; else undefined
    Tensor vP;                ///< eager: variance of the replayed P M, which then is PM; else undefined
    Tensor m, l, L, sL, eL2;  ///< [heads, rows, 1]

    /// What D's share in dS is multiplied by.
    const Tensor& weights_of_d() const { return J.defined() ? PJ : P; }
    /// What V is multiplied by, and its square.
    const Tensor& weights() const { return PM.defined() ? PM : P; }
    const Tensor& weights2() const { return PM2.defined() ? PM2 : P2; }
  };
  struct Gradient {
    Tensor dP, D, centred, dS, dS2;  ///< centred: dP - D; dP undefined where D is given
    Tensor vdP;                      ///< eager: variance of the replayed dP; else undefined
    Tensor eT;                       ///< fp32 accumulation of dP and of D, in dS; undefined where D is given
    Tensor raw, raw2;                ///< P centred, which softcap's derivative is not in yet, and its square
    Tensor sD2;                      ///< undefined: D is given and has no error
  };
  /// A value that an implementation stores, and the variance of what is uncertain about its rounding.
  struct Stored {
    Tensor value, variance;
  };

  Tensor of_heads(const std::vector<int64_t>& of_sequences, int64_t rows) const;
  int64_t sequence_of(int64_t head) const { return head * static_cast<int64_t>(h_.sequences.size()) / h_.heads; }
  void choose_samples();
  void hide_unread_keys();
  int64_t step() const;
  Tensor rows(int64_t count, int64_t channels) const { return at::zeros({h_.heads, count, channels}, options_); }
  Block block(int64_t first) const;
  Tensor by_head(const std::vector<double>& values) const { return at::tensor(values, options_).view({-1, 1, 1}); }
  Tensor of_rows(const Tensor& all, const Block& b) const { return all.narrow(1, b.first, b.rows); }
  Tensor of_keys(const Tensor& all, const Block& b) const { return all.narrow(1, b.key, b.keys); }
  void cap(Block& b, Tensor& A) const;
  void add_bias(Block& b, Tensor& A) const;
  Stored round_near(const Tensor& x, const Tensor& doubt) const;
  Stored scaled(Stored x) const;
  void store_products(Block& b) const;
  Tensor score_by_product(const Block& b) const;
  void store_probabilities(Block& b) const;
  Stored stored_ds(const Gradient& g, const Tensor& error2) const;
  void softmax(Block& b) const;
  void set_ds(const Block& b, Gradient& g) const;
  Tensor dp(const Block& b) const;
  Tensor largest_error2(const Block& b, const Tensor& x2, const Tensor& smallest2) const;
  Tensor weight_error2(const Block& b, const Tensor& smallest2) const;
  Tensor spacing(const Tensor& x) const;
  Tensor ulp_variance(const Tensor& x) const { return spacing(x).square_().div_(12); }
  Tensor output(const Block& b, const Tensor& vP);
  void sample_scores(const Block& b);
  Gradient gradient(const Block& b, const Tensor& O, const Tensor& vP) const;
  Tensor ds_error2(const Block& b, const Gradient& g) const;
  Tensor fp32_error2(const Block& b, const Gradient& g) const;
  void add_dq_dk(const Block& b, const Gradient& g);
  void add_eager_dq_dk(const Block& b, const Gradient& g);
  void add_allowances(const Block& b, const Gradient& g);
  void add_dv(const Block& b);
  void add_sources(const Block& b, const Gradient& g);
  Tensor sources(const Tensor& sum2, const Tensor& sum4, int64_t channels) const;

  const HeadProblem& h_;
  const Rounding& r_;
  const double s2_;
  at::TensorOptions options_;
  std::vector<std::vector<Stretch>> stretches_;  ///< by sequence and query
  Tensor begin_, end_, empty_;                   ///< the same as int64 and bool [1 or heads, queries, 1]
  Tensor queries_of_group_;                      ///< float64 [1 or heads, 1, 1]
  Tensor shift_;                                 ///< the same: key - query on the diagonal
  Tensor key_seen_;                              ///< bool [sequences, stored_keys]
  Tensor Q_, K_, V_, G_, f2_, f2_ds_;
  Tensor o_, o_var_, lse_, sigma_, o_nu_, dq_, dq_var_, dq_b_, dq_nu_;
  Tensor dk_, dk_var_, dk_b_, dv_, dv_var_, p2_, p4_, ds2_, ds4_, uniform_dout_;
  std::vector<Tensor> samples_;
  std::vector<int64_t> sampled_;  ///< samples so far of each head that is sampled
  std::vector<int64_t> owners_;   ///< the head of each sample
};

TorchHeads::TorchHeads(const HeadProblem& h)
    : h_(h), r_(h.rounding), s2_(h.scale * h.scale), options_(h.q.options()), Q_(h.q), K_(h.k), V_(h.v), G_(h.dout) {
  std::vector<int64_t> begin, end, empty, terms, shifts, seen;
  for (const SequenceOfHeads& sequence : h.sequences) {
    stretches_.push_back(read_keys(h, sequence));
    for (const Stretch& s : stretches_.back()) begin.push_back(s.begin), end.push_back(s.end), empty.push_back(s.empty);
    terms.push_back(sequence.queries * h.problem->group());
    shifts.push_back(h.problem->align == Align::top_left ? 0 : sequence.keys - sequence.queries);
    const std::vector<int64_t> read = keys_read(stretches_.back(), h.stored_keys, true);
    seen.insert(seen.end(), read.begin(), read.end());
  }
  begin_ = of_heads(begin, h.queries);
  end_ = of_heads(end, h.queries);
  empty_ = of_heads(empty, h.queries) != 0;
  queries_of_group_ = of_heads(terms, 1).to(at::kDouble);
  shift_ = of_heads(shifts, 1).to(at::kDouble);
  key_seen_ = to_tensor(seen, options_.device()).view({static_cast<int64_t>(h.sequences.size()), h.stored_keys}) != 0;
  choose_samples();
  if (h.empty_row == Conventions::EmptyRow::nan || h.sequences.size() > 1) hide_unread_keys();
  f2_ = at::full({1}, r_.f * r_.f, options_), f2_ds_ = at::full({1}, r_.f_ds * r_.f_ds, options_);
  // Rows that no block writes read no key.
  o_ = rows(h.queries, h.dv), o_var_ = o_.clone();
  lse_ = rows(h.queries, 1) - kInfinity, sigma_ = rows(h.queries, 1) + 4 * r_.e;
  o_nu_ = rows(h.queries, 1) + 1, dq_nu_ = o_nu_.clone();
  dq_ = rows(h.queries, h.d), dq_var_ = dq_.clone(), dq_b_ = dq_.clone();
  dk_ = rows(h.stored_keys, h.d), dk_var_ = dk_.clone(), dk_b_ = dk_.clone();
  dv_ = rows(h.stored_keys, h.dv), dv_var_ = dv_.clone();
  p2_ = rows(h.stored_keys, 1), p4_ = p2_.clone(), ds2_ = p2_.clone(), ds4_ = p2_.clone();
  uniform_dout_ = rows(h.factors.defined() ? h.stored_keys : 1, h.dv);
}

/// int64 [1 or heads, rows, 1], from `rows` numbers of each sequence.
Tensor TorchHeads::of_heads(const std::vector<int64_t>& of_sequences, int64_t rows) const {
  const auto sequences = static_cast<int64_t>(h_.sequences.size());
  const Tensor numbers = to_tensor(of_sequences, options_.device()).view({sequences, rows, 1});
  return sequences == 1 ? numbers : numbers.repeat_interleave(h_.heads / sequences, 0);
}

/// The first heads, as many as give enough samples.
void TorchHeads::choose_samples() {
  int64_t total = 0;
  for (int64_t head = 0; head < h_.heads && total < kScoreSamples; ++head) {
    total += samples_of(stretches_[sequence_of(head)]);
    sampled_.push_back(0);
  }
}

/// Keys that no query sees may hold NaN, which a probability of 0 does not cancel. No block reaches them but one with an empty
/// row that is NaN whatever it reads, and one of several sequences, of which another one reads on.
void TorchHeads::hide_unread_keys() {
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

/// Rows of a block.
int64_t TorchHeads::step() const {
  const bool cpu = options_.device().is_cpu();
  const int64_t elements = cpu ? kCpuBlockElements : kGpuBlockElements;
  const int64_t rows = std::max<int64_t>(elements / std::max<int64_t>(h_.stored_keys * h_.heads, 1), 16);
  return cpu ? std::min(rows, kMostCpuRows) : rows;
}

TorchHeads::Block TorchHeads::block(int64_t first) const {
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
void TorchHeads::cap(Block& b, Tensor& A) const {
  const double c = h_.problem->softcap;
  const Tensor t = (b.S / c).tanh();
  b.J = t.square().neg().add_(1);
  if (r_.scores) b.kT = t * b.J * (-2 / c);
  b.eJ2 = (A * b.J * t.abs()).mul_(2 * r_.k_scores / c).add_(4).mul_(r_.e).square_();
  b.S = t * c;
  A = A * b.J + b.S.abs() * (4 / r_.k_scores);
}

/// ALiBi's bias, its rounding and that of the sum.
void TorchHeads::add_bias(Block& b, Tensor& A) const {
  const Tensor i = at::arange(b.first, b.first + b.rows, options_).unsqueeze(1) + shift_;
  const Tensor j = at::arange(b.key, b.key + b.keys, options_).unsqueeze(0);
  const Tensor bias = (i - j).abs() * by_head(h_.slopes);
  b.S.sub_(bias);
  A.add_(bias, 2 / r_.k_scores).add_(b.S.abs(), 1 / r_.k_scores);
}

/// x as it is stored by who knows it up to `doubt`: what lies nearer to a tie may be the neighbour. Infinities are left out.
TorchHeads::Stored TorchHeads::round_near(const Tensor& x, const Tensor& doubt) const {
  const Tensor stored = x.to(r_.dtype == Dtype::bf16 ? at::kBFloat16 : at::kHalf).to(at::kDouble);
  const Tensor overflows = (stored.abs() < kInfinity).logical_not_();
  // A power of two that may lie between brings the ties below it closer.
  const Tensor least = spacing((x.abs() - doubt).clamp_min_(0)), most = spacing(x.abs() + doubt);
  const Tensor known = (least / 2 - (x - stored).abs() > doubt).logical_or_(overflows);
  return {at::where(overflows, x, stored), most.square_().div_(2).masked_fill_(known, 0)};
}

/// s x as it is stored, of a stored x: where x may be its neighbour, s x is as uncertain as that.
TorchHeads::Stored TorchHeads::scaled(Stored x) const {
  x.value.mul_(h_.scale), x.variance.mul_(s2_);
  const Tensor doubt = x.value.abs().mul_(kCertain * r_.e).add_((x.variance * 2).sqrt_());
  const Stored product = round_near(x.value, doubt);
  return {product.value, x.variance.add_(product.variance)};
}

/// Q K^T is stored, then s times that.
void TorchHeads::store_products(Block& b) const {
  const Tensor terms = b.Q.abs().matmul(b.K.abs().mT());
  const Stored T = scaled(round_near(b.Q.matmul(b.K.mT()), terms.mul_(kCertain * r_.e * r_.k_scores)));
  b.S = T.value, b.vT = T.variance;
}

/// dS/dT: equal scores of an empty row are constants.
Tensor TorchHeads::score_by_product(const Block& b) const {
  const Tensor slope = b.J.defined() ? b.J : at::ones({1, 1, 1}, options_);
  return b.fills ? slope.masked_fill(b.filled, 0) : slope;
}

/// P M is stored; P itself is as uncertain as the stored products and an fp32 softmax of them.
void TorchHeads::store_probabilities(Block& b) const {
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
void TorchHeads::softmax(Block& b) const {
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

/// max(u |x|, smallest)^2 where a key is read, else 0, of an x that is 0 there; by their squares.
Tensor TorchHeads::largest_error2(const Block& b, const Tensor& x2, const Tensor& smallest2) const {
  if (r_.f == 0) return x2 * (r_.u * r_.u);
  return at::maximum(x2 * (r_.u * r_.u), smallest2).masked_fill_(b.unread, 0);
}

/// hP^2, or hB^2: of P M as it is stored.
Tensor TorchHeads::weight_error2(const Block& b, const Tensor& smallest2) const {
  const Tensor h2 = largest_error2(b, b.weights2(), smallest2);
  return b.M.defined() ? h2.masked_fill(b.M == 0, 0) : h2;
}

/// Distance of neighbours at x: the bits of the exponent alone are the power of two at or below |x|.
Tensor TorchHeads::spacing(const Tensor& x) const {
  const int digits = r_.dtype == Dtype::bf16 ? 7 : r_.dtype == Dtype::fp16 ? 10 : 23;
  const int smallest = r_.dtype == Dtype::fp16 ? -24 : -126;
  const Tensor power = x.view(at::kLong).bitwise_and(int64_t(0x7ff) << 52).view(at::kDouble);
  return power.mul(std::ldexp(1.0, -digits)).clamp_min_(std::ldexp(1.0, smallest));
}

/// Effective number of equal sources, from the sums of the squared and of the fourth powers.
Tensor TorchHeads::sources(const Tensor& sum2, const Tensor& sum4, int64_t channels) const {
  return at::where(sum4 > 0, (sum2.square() / sum4).clamp(1, static_cast<double>(channels)), 1.0);
}

/// O with its variance and the LSE of a block. vP, of the P that is multiplied by V, undefined: P is not rounded.
Tensor TorchHeads::output(const Block& b, const Tensor& vP) {
  Tensor w = b.P2 * b.eS2;
  const Tensor O = b.weights().matmul(b.V), total = w.sum(-1, true), accumulated = b.n * r_.accumulation;
  const Tensor wV = b.M.defined() ? (w * b.M).matmul(b.V) : w.matmul(b.V);
  if (r_.scores) w += b.shifted;
  if (b.M.defined()) w *= b.M.square();
  if (vP.defined()) w += vP;
  if (r_.accumulation > 0) w += b.weights2() * accumulated;
  Tensor variance = w.matmul(b.V.square()) - O * wV * 2 + O.square() * (total + accumulated) + ulp_variance(O);
  if (r_.scores) variance += O.square() * b.shifted.sum(-1, true);
  if (vP.defined() && b.fills) {  // equal P round alike
    const Tensor sum = b.M.defined() ? (b.M != 0).to(at::kDouble).matmul(b.V) : b.V.sum(1, true);
    variance += at::where(b.filled, vP.amax(-1, true) * sum.square(), 0.0);
  }
  of_rows(o_, b).copy_(O);
  of_rows(o_var_, b).copy_(at::where(b.reads_any, variance, 0.0));
  of_rows(lse_, b).copy_(at::where(b.filled | b.reads_any.logical_not(), -kInfinity, b.L));
  of_rows(sigma_, b).copy_(b.sL);
  return O;
}

/// Every 16th visible key of a row, starting at another one in each row.
void TorchHeads::sample_scores(const Block& b) {
  std::vector<int64_t> places, rows;
  for (int64_t head = 0; head < static_cast<int64_t>(sampled_.size()); ++head) {
    const std::vector<Stretch>& stretches = stretches_[sequence_of(head)];
    for (int64_t i = b.first; i < b.first + b.rows && sampled_[head] < kScoreSamples; ++i) {
      const Stretch& s = stretches[i];
      for (int64_t j = first_sample(s, i); !s.empty && j < s.end; j += kSampledKeys, ++sampled_[head]) {
        rows.push_back(head * b.rows + i - b.first);
        places.push_back(rows.back() * b.keys + j - b.key);
        owners_.push_back(head);
      }
    }
  }
  if (places.empty()) return;
  const Tensor S = b.S.flatten().index_select(0, to_tensor(places, options_.device()));
  samples_.push_back(S - b.m.flatten().index_select(0, to_tensor(rows, options_.device())));
}

/// From centred.
void TorchHeads::set_ds(const Block& b, Gradient& g) const {
  g.raw = b.P * g.centred;
  g.raw2 = g.raw.square();
  g.dS = b.J.defined() ? g.raw * b.J : g.raw;
  g.dS2 = b.J.defined() ? g.dS.square() : g.raw2;
}

Tensor TorchHeads::dp(const Block& b) const {
  const Tensor dP = b.G.matmul(b.V.mT());
  return b.M.defined() ? dP * b.M : dP;
}

TorchHeads::Gradient TorchHeads::gradient(const Block& b, const Tensor& O, const Tensor& vP) const {
  Gradient g;
  g.dP = b.G.matmul(b.V.mT());
  Tensor summed = b.G.square().matmul(b.V.square().mT()).sqrt_().add_(g.dP.abs()).mul_(r_.e * r_.k_dp);
  if (r_.scores) {
    const Stored dP = round_near(g.dP, summed * kCertain);
    g.dP = dP.value, g.vdP = dP.variance;
    summed = summed.zero_();
  }
  if (b.M.defined()) {
    g.dP *= b.M, summed *= b.M;
    if (r_.scores) g.vdP *= b.M.square();
  }
  g.D = r_.scores ? (b.P * g.dP).sum(-1, true) : (b.G * O).sum(-1, true);
  Tensor eD =
      r_.d_from_output ? (b.G * O).abs().sum(-1, true) * (2 * r_.e) : (b.P * g.dP.abs()).sum(-1, true) * (b.n.sqrt() + 2) * r_.e;
  if (!r_.d_from_output) eD = eD + (b.P * summed).sum(-1, true);
  g.eT = (summed + eD) * b.weights_of_d();
  g.centred = g.dP - g.D;
  // The one key of a row has P = 1 and dP = D: what the arithmetic leaves of dS = 0 would be counted as a source.
  if (b.has_single) g.centred.masked_fill_((b.n == 1) & b.filled.logical_not(), 0);
  set_ds(b, g);
  g.sD2 = (g.raw2 * b.eS2).sum(-1, true);
  if (!r_.d_from_output) return g;
  g.sD2 += (b.G.square() * ulp_variance(O)).sum(-1, true);
  const double kept = 1 - h_.problem->dropout.p;  // dP / M
  if (vP.defined()) g.sD2 += (vP * g.dP.square()).sum(-1, true) * (kept * kept);
  return g;
}

/// hS^2 of a rounded dS.
Tensor TorchHeads::ds_error2(const Block& b, const Gradient& g) const {
  Tensor hS2 = largest_error2(b, g.dS2, f2_ds_);
  if (r_.ds_from_rounded_p) {
    const Tensor error2 = largest_error2(b, b.P2, f2_) * g.centred.square();
    hS2 += b.J.defined() ? error2 * b.J.square() : error2;
  }
  if (g.sD2.defined() && r_.d_from_output) hS2 += b.weights_of_d().square() * (g.sD2 * (r_.u * r_.u));
  return hS2;
}

/// Of a dS that is not rounded.
Tensor TorchHeads::fp32_error2(const Block& b, const Gradient& g) const {
  Tensor error2 = (g.dS2 * b.eS2).add_(b.P != 0, kFlushedDs2);
  return b.J.defined() ? error2.add_(g.raw2 * b.eJ2) : error2;
}

void TorchHeads::add_dq_dk(const Block& b, const Gradient& g) {
  Tensor w = fp32_error2(b, g);
  if (r_.ds) w += ds_error2(b, g).div_(3);
  const Tensor dq = g.dS.matmul(b.K).mul_(h_.scale), accumulated = b.n * r_.accumulation;
  const Tensor weights = r_.accumulation > 0 ? w + g.dS2 * accumulated : w;
  Tensor variance = weights.matmul(b.K.square()) * s2_ + dq.square() * (b.eL2 + accumulated) + ulp_variance(dq);
  if (g.sD2.defined()) variance += b.weights_of_d().matmul(b.K).square() * g.sD2 * s2_;
  of_rows(dq_, b).copy_(dq);
  of_rows(dq_var_, b).copy_(at::where(b.reads_any, variance, 0.0));
  w += g.dS2 * (b.eL2 + queries_of_group_ * r_.accumulation);
  if (g.sD2.defined()) w += b.weights_of_d().square() * g.sD2;
  of_keys(dk_, b).add_(g.dS.mT().matmul(b.Q), h_.scale);
  of_keys(dk_var_, b).add_(w.mT().matmul(b.Q.square()), s2_);
}

/// dS as it is stored and then s dS, which the products with K and Q read. error2: square of dS's error.
TorchHeads::Stored TorchHeads::stored_ds(const Gradient& g, const Tensor& error2) const {
  return scaled(round_near(g.dS, (error2.sqrt() + g.eT).mul_(kCertain)));
}

/// Eager: what is uncertain about the stored T and dP, at its own key and through l and D at the others; then about dS itself.
void TorchHeads::add_eager_dq_dk(const Block& b, const Gradient& g) {
  const Tensor PJ2 = b.weights_of_d().square(), K2 = b.K.square(), slope = score_by_product(b);
  const Tensor mu = g.raw * (b.J.defined() ? b.J * slope + b.kT : slope);
  const Tensor fp32 = fp32_error2(b, g);
  const Tensor own = (mu.square() * b.vT + PJ2 * g.vdP).mul_(kAlone);
  const Tensor of_d = (g.raw2 * b.vS + b.P2 * g.vdP).sum(-1, true).mul_(kAlone), of_l = b.shifted.sum(-1, true);
  const Tensor error2 = own + fp32 + PJ2 * of_d + g.dS2 * of_l;
  const Stored dS = stored_ds(g, error2);
  const Tensor dq = dS.value.matmul(b.K);
  const Tensor shared = b.weights_of_d().matmul(b.K).square_() * of_d + g.dS.matmul(b.K).square_() * of_l;
  const Tensor variance = ((own + fp32).matmul(K2) + shared) * s2_ + dS.variance.matmul(K2) + ulp_variance(dq);
  of_rows(dq_, b).copy_(dq);
  of_rows(dq_var_, b).copy_(at::where(b.reads_any, variance, 0.0));
  of_keys(dk_, b).add_(dS.value.mT().matmul(b.Q));
  of_keys(dk_var_, b).add_((error2 * s2_ + dS.variance).mT().matmul(b.Q.square()));
}

void TorchHeads::add_allowances(const Block& b, const Gradient& g) {
  of_rows(dq_b_, b).copy_(g.eT.matmul(b.K.abs()) * std::abs(h_.scale));
  of_keys(dk_b_, b).add_(g.eT.mT().matmul(b.Q.abs()), std::abs(h_.scale));
}

void TorchHeads::add_dv(const Block& b) {
  Tensor w = b.P2 * b.eS2;
  if (r_.scores) {
    w += b.shifted + b.P2 * b.shifted.sum(-1, true);
  } else {
    w += b.P2 * (b.eL2 + queries_of_group_ * r_.accumulation);
  }
  w.add_(b.P != 0, kFlushedP2);
  if (b.M.defined()) w *= b.M.square();
  if (r_.scores) w += b.vP;
  const bool rounds_p = r_.ds && !r_.scores;
  if (rounds_p) w += weight_error2(b, f2_).div_(3);
  of_keys(dv_, b).add_(b.weights().mT().matmul(b.G));
  of_keys(dv_var_, b).add_(w.mT().matmul(b.G.square()));
  if (!rounds_p || !b.fills) return;
  const Tensor filled = at::where(b.filled, b.G, 0.0);
  if (b.M.defined())
    of_keys(uniform_dout_, b).add_((b.M != 0).to(at::kDouble).mT().matmul(filled));
  else
    uniform_dout_ += filled.sum(1, true);
}

void TorchHeads::add_sources(const Block& b, const Gradient& g) {
  const Tensor P2 = b.weights2(), P4 = P2.square(), dS4 = g.dS2.square();
  of_keys(p2_, b).add_(P2.sum(1).unsqueeze(-1));
  of_keys(p4_, b).add_(P4.sum(1).unsqueeze(-1));
  of_keys(ds2_, b).add_(g.dS2.sum(1).unsqueeze(-1));
  of_keys(ds4_, b).add_(dS4.sum(1).unsqueeze(-1));
  if (r_.scores) {
    of_rows(o_nu_, b).fill_(h_.dv);
    of_rows(dq_nu_, b).fill_(h_.d);
    return;
  }
  const Tensor o_nu = sources(P2.sum(-1, true), P4.sum(-1, true), h_.dv);
  const Tensor dq_nu = sources(g.dS2.sum(-1, true), dS4.sum(-1, true), h_.d);
  of_rows(o_nu_, b).copy_(at::where(b.filled, 0.0, o_nu));
  of_rows(dq_nu_, b).copy_(at::where(b.filled, 0.0, dq_nu));
}

HeadAnswer TorchHeads::answer() {
  for (int64_t first = 0; first < h_.queries; first += step()) {
    const Block b = block(first);
    if (b.keys == 0) continue;
    Tensor vP = b.vP;
    if (r_.p && !r_.scores) vP = weight_error2(b, r_.p_normalised ? f2_ : f2_ / b.l.square()) / 3;
    const Tensor O = output(b, vP);
    sample_scores(b);
    const Gradient g = gradient(b, O, vP);
    if (r_.scores)
      add_eager_dq_dk(b, g);
    else
      add_dq_dk(b, g);
    add_allowances(b, g);
    add_dv(b);
    add_sources(b, g);
  }
  // Uniform rows hold equal P, so that they round alike and their errors add up.
  std::vector<int64_t> stored;
  for (const SequenceOfHeads& sequence : h_.sequences) stored.push_back(std::max<int64_t>(sequence.stored_keys, 1));
  const double most = r_.u / (1 - h_.problem->dropout.p);
  const Tensor hB = (of_heads(stored, 1).to(at::kDouble).reciprocal() * most).clamp_min_(r_.f);
  dv_var_ += uniform_dout_.square() * (hB.square() / 3);
  HeadAnswer out;
  out.o = o_, out.o_variance = o_var_, out.o_freedom = o_nu_.squeeze(-1);
  out.lse = lse_.squeeze(-1), out.lse_sigma = sigma_.squeeze(-1);
  out.dq = dq_, out.dq_variance = dq_var_, out.dq_allowance = dq_b_, out.dq_freedom = dq_nu_.squeeze(-1);
  out.dk = dk_, out.dk_variance = dk_var_, out.dk_allowance = dk_b_;
  out.dv = dv_, out.dv_variance = dv_var_;
  out.p2 = p2_.squeeze(-1), out.p4 = p4_.squeeze(-1), out.ds2 = ds2_.squeeze(-1), out.ds4 = ds4_.squeeze(-1);
  out.key_seen = key_seen_;
  out.score_samples = samples_.empty() ? at::zeros({0}, options_) : at::cat(samples_);
  out.sampled_heads = owners_;
  return out;
}

HeadGradients TorchHeads::given_output(const Tensor& o) {
  for (int64_t first = 0; first < h_.queries; first += step()) {
    const Block b = block(first);
    if (b.keys == 0) continue;
    Gradient g;
    g.D = (b.G * of_rows(o, b)).sum(-1, true);
    g.centred = dp(b) - g.D;
    set_ds(b, g);
    add_dq_dk(b, g);
  }
  return {dq_, dq_var_, dk_, dk_var_};
}

}  // namespace

HeadAnswer torch_heads(const HeadProblem& heads) {
  const at::NoGradGuard no_grad;
  return TorchHeads(heads).answer();
}

HeadGradients torch_heads_given_output(const HeadProblem& heads, const at::Tensor& o) {
  const at::NoGradGuard no_grad;
  return TorchHeads(heads).given_output(o);
}

}  // namespace attnbench
