// The oracle in LibTorch: float64 tensor operations on any device, on heads of several sequences at once, in blocks of query
// rows (oracle_torch_block.hpp): the answer that the blocks add up to, and its variances.
#include <algorithm>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/oracle_torch_block.hpp"
#include "harness/attention/tokens.hpp"

namespace attnbench {
namespace {

using at::Tensor;
using torch_oracle::Block;
using torch_oracle::kAlone;
using torch_oracle::kCertain;
using torch_oracle::Stored;
using torch_oracle::Stretch;

constexpr int64_t kSampledKeys = 16;

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

class TorchHeads : private torch_oracle::Blocks {
 public:
  explicit TorchHeads(const HeadProblem& h);
  HeadAnswer answer();
  HeadGradients given_output(const Tensor& o);

 private:
  struct Gradient {
    Tensor dP, D, centred, dS, dS2;  ///< centred: dP - D; dP undefined where D is given
    Tensor vdP;                      ///< eager: variance of the replayed dP; else undefined
    Tensor eT;                       ///< fp32 accumulation of dP and of D, in dS; undefined where D is given
    Tensor raw, raw2;                ///< P centred, which softcap's derivative is not in yet, and its square
    Tensor sD2;                      ///< undefined: D is given and has no error
  };

  void choose_samples();
  Tensor rows(int64_t count, int64_t channels) const { return at::zeros({h_.heads, count, channels}, options_); }
  Stored stored_ds(const Gradient& g, const Tensor& error2) const;
  Tensor rounded_together(const Block& b, const Tensor& variance, const Tensor& K2) const;
  void set_ds(const Block& b, Gradient& g) const;
  Tensor dp(const Block& b) const;
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

  Tensor queries_of_group_;  ///< float64 [1 or heads, 1, 1]
  Tensor f2_, f2_ds_;
  Tensor o_, o_var_, lse_, sigma_, o_nu_, dq_, dq_var_, dq_b_, dq_nu_;
  Tensor dk_, dk_var_, dk_b_, dv_, dv_var_, p2_, p4_, ds2_, ds4_, uniform_dout_;
  std::vector<Tensor> samples_;
  std::vector<int64_t> sampled_;  ///< samples so far of each head that is sampled
  std::vector<int64_t> owners_;   ///< the head of each sample
};

TorchHeads::TorchHeads(const HeadProblem& h) : Blocks(h) {
  std::vector<int64_t> terms;
  for (const SequenceOfHeads& sequence : h.sequences) terms.push_back(sequence.queries * h.problem->group());
  queries_of_group_ = of_heads(terms, 1).to(at::kDouble);
  choose_samples();
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

/// The first heads, as many as give enough samples.
void TorchHeads::choose_samples() {
  int64_t total = 0;
  for (int64_t head = 0; head < h_.heads && total < kScoreSamples; ++head) {
    total += samples_of(stretches_[sequence_of(head)]);
    sampled_.push_back(0);
  }
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
  w.add_(b.P != 0, kFlushedP2);
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
Stored TorchHeads::stored_ds(const Gradient& g, const Tensor& error2) const {
  return scaled(round_near(g.dS, (error2.sqrt() + g.eT).mul_(kCertain)));
}

/// Of dq: what the dS of keys that a dropout left out, -P D, add to the variance that independent ones would have. Where P are
/// equal so are they, and one that lies at a tie takes all of them to the same side.
Tensor TorchHeads::rounded_together(const Block& b, const Tensor& variance, const Tensor& K2) const {
  const Tensor left_out = variance.masked_fill(b.M != 0, 0);
  return (left_out.sqrt().matmul(b.K).square_() - left_out.matmul(K2)).clamp_min_(0);
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
  Tensor variance = ((own + fp32).matmul(K2) + shared) * s2_ + dS.variance.matmul(K2) + ulp_variance(dq);
  if (b.M.defined()) variance += rounded_together(b, dS.variance, K2);
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
