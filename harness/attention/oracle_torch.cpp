// The oracle in LibTorch: float64 tensor operations on any device, one head at a time, in blocks of query rows against
// all stored keys. Letters and formulas: error_model.hpp.
#include <cmath>
#include <limits>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/frexp.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "harness/attention/oracle.hpp"

namespace attnbench {
namespace {

using at::Tensor;

constexpr int64_t kBlockElements = 1 << 20;

class TorchHead {
 public:
  TorchHead(const HeadProblem& h, c10::Device device);
  HeadAnswer answer();
  HeadGradients given_output(const double* o);

 private:
  /// Rows [first, first + rows) against all stored keys; [rows, keys] or [rows, 1].
  struct Block {
    int64_t first = 0, rows = 0;
    Tensor reads, empty;  ///< bool: reads a key; the mask hides all keys from this query
    Tensor Q, G, S, P, eS2, L, l, n, sL, eL2, hS2;
  };
  struct Gradient {
    Tensor dP, D, sD2, dS;
  };

  Tensor sees(int64_t first, int64_t rows) const;
  void clear_unread_keys();
  Block block(int64_t first, int64_t rows) const;
  Tensor upload(const double* data, int64_t rows, int64_t channels) const;
  Tensor largest_error2(const Block& b, const Tensor& x, const Tensor& smallest) const;
  Tensor ulp_variance(const Tensor& x) const;
  Tensor output(const Block& b, const Tensor& hP2);
  void sample_scores(const Block& b, HeadAnswer& out) const;
  Tensor ds_error2(const Block& b, const Gradient& g) const;
  void add_dq_dk(const Block& b, const Gradient& g);
  void add_eager_dq_dk(const Block& b, const Gradient& g);
  void add_allowances(const Block& b, const Gradient& g, const Tensor& O);
  void add_dv(const Block& b);
  void add_sources(const Block& b, const Gradient& g);
  Tensor sources(const Tensor& w, int64_t channels) const;
  bool score_rounding_is_small(const Block& b) const;

  const HeadProblem& h_;
  const Rounding& r_;
  at::TensorOptions options_;
  Tensor Q_, K_, V_, G_, f_;
  Tensor o_, o_var_, lse_, sigma_, o_nu_, dq_, dq_var_, dq_b_, dq_nu_;
  Tensor dk_, dk_var_, dk_b_, dv_, dv_var_, p2_, p4_, ds2_, ds4_, seen_;
  Tensor uniform_dout_, uniform_h2_;
};

Tensor TorchHead::upload(const double* data, int64_t rows, int64_t channels) const {
  if (rows == 0) return at::zeros({0, channels}, options_);
  return at::from_blob(const_cast<double*>(data), {rows, channels}, at::kDouble).to(options_.device()).clone();
}

TorchHead::TorchHead(const HeadProblem& h, c10::Device device)
    : h_(h), r_(h.rounding), options_(at::TensorOptions().dtype(at::kDouble).device(device)) {
  Q_ = upload(h.q, h.queries, h.d);
  K_ = upload(h.k, h.stored_keys, h.d);
  V_ = upload(h.v, h.stored_keys, h.dv);
  G_ = upload(h.dout, h.queries, h.dv);
  if (h.queries > 0) clear_unread_keys();
  f_ = at::zeros({1, 1}, options_) + r_.f;
  const auto rows = [&](int64_t n, int64_t channels) { return at::zeros({n, channels}, options_); };
  o_ = rows(h.queries, h.dv), o_var_ = o_.clone();
  lse_ = rows(h.queries, 1), sigma_ = lse_.clone(), o_nu_ = lse_ + 1, dq_nu_ = lse_ + 1;
  dq_ = rows(h.queries, h.d), dq_var_ = dq_.clone(), dq_b_ = dq_.clone();
  dk_ = rows(h.stored_keys, h.d), dk_var_ = dk_.clone(), dk_b_ = dk_.clone();
  dv_ = rows(h.stored_keys, h.dv), dv_var_ = dv_.clone();
  p2_ = rows(h.stored_keys, 1), p4_ = p2_.clone(), ds2_ = p2_.clone(), ds4_ = p2_.clone(), seen_ = p2_.clone();
  uniform_dout_ = rows(1, h.dv), uniform_h2_ = rows(1, 1);
}

/// Which of the real keys the mask shows to queries [first, first + rows): by the distance to the diagonal.
Tensor TorchHead::sees(int64_t first, int64_t rows) const {
  const auto integers = options_.dtype(at::kLong);
  const int64_t shift = h_.problem->align == Align::top_left ? 0 : h_.keys - h_.queries;
  const Tensor i = at::arange(first, first + rows, integers).unsqueeze(1);
  const Tensor j = at::arange(h_.stored_keys, integers).unsqueeze(0);
  const Tensor distance = j - (i + shift);
  Tensor seen = (j < h_.keys).expand({rows, h_.stored_keys});
  if (h_.problem->mask == Mask::causal) seen = seen & (distance <= 0);
  if (const auto& window = h_.problem->window) {
    if (window->left >= 0) seen = seen & (distance >= -window->left);
    if (window->right >= 0) seen = seen & (distance <= window->right);
  }
  return seen;
}

/// Keys that no query sees may hold NaN, which a probability of 0 does not cancel. The first query sees the lowest keys, the
/// last one the highest. Uniform empty rows read every key.
void TorchHead::clear_unread_keys() {
  if (h_.empty_row == Conventions::EmptyRow::uniform) return;
  const int64_t shift = h_.problem->align == Align::top_left ? 0 : h_.keys - h_.queries, highest = h_.queries - 1 + shift;
  const Tensor j = at::arange(h_.stored_keys, options_.dtype(at::kLong)).unsqueeze(1);
  Tensor seen = j < h_.keys;
  if (h_.problem->mask == Mask::causal) seen = seen & (j <= highest);
  if (const auto& window = h_.problem->window) {
    if (window->left >= 0) seen = seen & (j >= shift - window->left);
    if (window->right >= 0) seen = seen & (j <= highest + window->right);
  }
  K_ = at::where(seen, K_, 0.0);
  V_ = at::where(seen, V_, 0.0);
}

TorchHead::Block TorchHead::block(int64_t first, int64_t rows) const {
  Block b;
  b.first = first;
  b.rows = rows;
  b.Q = Q_.narrow(0, first, rows);
  b.G = G_.narrow(0, first, rows);
  const Tensor seen = sees(first, rows);
  b.empty = seen.any(1, true).logical_not();
  const bool fills = h_.empty_row != Conventions::EmptyRow::zero;
  b.reads = fills ? seen | b.empty : seen;
  const double filler = h_.empty_row == Conventions::EmptyRow::nan ? std::nan("") : 0;
  b.S = at::where(b.empty, filler, b.Q.matmul(K_.t()) * h_.scale);
  const Tensor A = at::where(b.empty, 0.0, b.Q.abs().matmul(K_.abs().t()) * std::abs(h_.scale));
  const Tensor masked = b.S.masked_fill(b.reads.logical_not(), -std::numeric_limits<double>::infinity());
  const Tensor m = at::where(b.empty, 0.0, masked.amax(1, true));
  const Tensor exps = at::where(b.reads, (masked - m).exp(), 0.0);
  const Tensor reads_any = b.reads.any(1, true);
  b.l = at::where(reads_any, exps.sum(1, true), 1.0);
  b.P = exps / b.l;
  b.L = at::where(reads_any, m + b.l.log(), 0.0);
  b.n = b.reads.to(at::kDouble).sum(1, true);
  b.eS2 = ((A * r_.k_scores + 4) * r_.e).square();
  b.sL = (b.L.abs() + 4 + (b.P * A).sum(1, true) * r_.k_scores + b.n.sqrt()) * r_.e;
  b.eL2 = r_.accumulation > 0 ? b.sL.square() : ((b.L.abs() * 2 + 2) * r_.e).square();
  if (r_.scores) b.hS2 = at::where(b.reads, (b.S * r_.u).square() * (r_.scale_is_exact ? 1 : 2), 0.0);
  return b;
}

/// max(u |x|, smallest)^2 where a key is read, else 0.
Tensor TorchHead::largest_error2(const Block& b, const Tensor& x, const Tensor& smallest) const {
  return at::where(b.reads, at::maximum(x.abs() * r_.u, smallest).square(), 0.0);
}

/// ulp^2/12 by the binary exponent of x.
Tensor TorchHead::ulp_variance(const Tensor& x) const {
  const auto exponent = std::get<1>(at::frexp(x)).to(at::kDouble) - 1;  // frexp's mantissa lies in [1/2, 1)
  const double digits = r_.dtype == Dtype::bf16 ? 7 : r_.dtype == Dtype::fp16 ? 10 : 23;
  const double smallest = r_.dtype == Dtype::fp16 ? -24 : -126;
  const Tensor spacing = at::where(x == 0, smallest, (exponent - digits).clamp_min(smallest)).exp2();
  return spacing.square() / 12;
}

Tensor TorchHead::sources(const Tensor& w, int64_t channels) const {
  const Tensor fourth = w.square().sum(1, true);
  const Tensor n = (w.sum(1, true).square() / fourth).clamp(1, static_cast<double>(channels));
  return at::where(fourth > 0, n, 1.0);
}

/// O with its variance and the LSE of a block.
Tensor TorchHead::output(const Block& b, const Tensor& hP2) {
  const Tensor P2 = b.P.square(), accumulated = b.n * r_.accumulation;
  Tensor w = P2 * b.eS2;
  if (r_.scores) w = w + P2 * b.hS2 / 3;
  const Tensor O = b.P.matmul(V_);
  Tensor variance = (w + hP2 / 3 + P2 * accumulated).matmul(V_.square()) - O * w.matmul(V_) * 2;
  variance = variance + O.square() * (w.sum(1, true) + accumulated) + ulp_variance(O);
  const Tensor reads_any = b.reads.any(1, true), uniform = b.empty & reads_any;
  if (r_.p && h_.stored_keys > 0)
    variance = variance + at::where(uniform, hP2.narrow(1, 0, 1) / 3 * V_.sum(0, true).square(), 0.0);
  o_.narrow(0, b.first, b.rows).copy_(O);
  o_var_.narrow(0, b.first, b.rows).copy_(at::where(reads_any, variance, 0.0));
  lse_.narrow(0, b.first, b.rows).copy_(at::where(b.empty, -std::numeric_limits<double>::infinity(), b.L));
  sigma_.narrow(0, b.first, b.rows).copy_(b.sL);
  o_nu_.narrow(0, b.first, b.rows).copy_(at::where(uniform, 0.0, sources(P2, h_.dv)));
  return O;
}

/// Every 16th visible key of a row, starting at another one in each row.
void TorchHead::sample_scores(const Block& b, HeadAnswer& out) const {
  const Tensor i = at::arange(b.first, b.first + b.rows, options_.dtype(at::kLong)).unsqueeze(1);
  const Tensor rank = b.reads.to(at::kLong).cumsum(1) - 1;
  const Tensor chosen = b.reads & b.empty.logical_not() & (rank >= (i * 7) % 16) & ((rank - (i * 7) % 16) % 16 == 0);
  const Tensor hidden = b.S.masked_fill(b.reads.logical_not(), -std::numeric_limits<double>::infinity());
  const Tensor samples = (b.S - hidden.amax(1, true)).masked_select(chosen).to(at::kCPU).contiguous();
  const double* data = samples.const_data_ptr<double>();
  out.score_samples.insert(out.score_samples.end(), data, data + samples.numel());
}

bool TorchHead::score_rounding_is_small(const Block& b) const {
  const Tensor rows = b.empty.logical_not(), S = at::where(b.reads, b.S, 0.0);
  const Tensor largest = S.abs().amax(1, true) * r_.u, mean = S.sum(1, true) / b.n;
  const Tensor deviation = (at::where(b.reads, (S - mean).square(), 0.0).sum(1, true) / b.n).sqrt();
  const Tensor good = (largest <= 0.05) & ((b.n < 8) | (deviation >= largest * 32));
  return (good | rows.logical_not()).all().item<bool>();
}

/// hS^2 of a rounded dS.
Tensor TorchHead::ds_error2(const Block& b, const Gradient& g) const {
  Tensor hS2 = largest_error2(b, g.dS, f_);
  if (g.sD2.defined() && r_.d_from_output) hS2 = hS2 + b.P.square() * g.sD2 * (r_.u * r_.u);
  return hS2;
}

void TorchHead::add_dq_dk(const Block& b, const Gradient& g) {
  const double s2 = h_.scale * h_.scale, queries = static_cast<double>(h_.queries * h_.problem->group());
  const Tensor dS2 = g.dS.square();
  Tensor w = dS2 * b.eS2;
  if (r_.ds) w = w + ds_error2(b, g) / 3;
  const Tensor dq = g.dS.matmul(K_) * h_.scale;
  const Tensor accumulated = b.n * r_.accumulation;
  Tensor variance = (w + dS2 * accumulated).matmul(K_.square()) * s2 + dq.square() * (b.eL2 + accumulated) + ulp_variance(dq);
  if (g.sD2.defined()) variance = variance + b.P.matmul(K_).square() * g.sD2 * s2;
  dq_.narrow(0, b.first, b.rows).copy_(dq);
  dq_var_.narrow(0, b.first, b.rows).copy_(at::where(b.reads.any(1, true), variance, 0.0));
  w = w + dS2 * (b.eL2 + queries * r_.accumulation);
  if (g.sD2.defined()) w = w + b.P.square() * g.sD2;
  dk_ += g.dS.t().matmul(b.Q) * h_.scale;
  dk_var_ += w.t().matmul(b.Q.square()) * s2;
}

/// Eager: first-order response of dS to the roundings of P (weight c, shared part e), dP, S, dS and s dS.
void TorchHead::add_eager_dq_dk(const Block& b, const Gradient& g) {
  const double s2 = h_.scale * h_.scale;
  const Tensor P = b.P, P2 = P.square(), dS2 = g.dS.square(), K2 = K_.square();
  const Tensor hB = largest_error2(b, P, f_).sqrt();
  const Tensor c = hB * (g.dP - g.D), e = hB * g.dP;
  const Tensor dp_error2 = P2 * at::maximum(g.dP.abs() * r_.u, f_).square();
  const Tensor own = dS2 * b.hS2, cross = b.hS2 * g.dS * P;
  Tensor stored = largest_error2(b, g.dS, f_);
  if (!r_.scale_is_exact) stored = stored + largest_error2(b, g.dS, f_ / h_.scale);
  const Tensor shared = e.square().sum(1, true) + dp_error2.sum(1, true) + own.sum(1, true);
  const Tensor tilt = cross.sum(1, true), gain = (P2 * b.hS2).sum(1, true);
  const Tensor PK = P.matmul(K_), dSK = g.dS.matmul(K_), dq = dSK * h_.scale;

  Tensor propagated = (c.square() + dp_error2 + own + stored).matmul(K2);
  propagated = propagated - PK * (c * e + dp_error2 + own).matmul(K_) * 2 + PK.square() * shared;
  propagated = propagated + PK * dSK * tilt * 2 - dSK * cross.matmul(K_) * 2 + dSK.square() * gain;
  const Tensor variance = (propagated / 3 + (dS2 * b.eS2).matmul(K2)) * s2 + ulp_variance(dq);
  dq_.narrow(0, b.first, b.rows).copy_(dq);
  dq_var_.narrow(0, b.first, b.rows).copy_(at::where(b.reads.any(1, true), variance, 0.0));

  Tensor w = c.square() - c * P * e * 2 + dp_error2 * (P * -2 + 1) + own * (P * -4 + 1) + stored;
  w = w + P2 * shared + dS2 * gain + g.dS * P * tilt * 2;
  w = w / 3 + dS2 * (b.eS2 + b.eL2);
  dk_ += g.dS.t().matmul(b.Q) * h_.scale;
  dk_var_ += w.t().matmul(b.Q.square()) * s2;
}

void TorchHead::add_allowances(const Block& b, const Gradient& g, const Tensor& O) {
  const Tensor eD =
      r_.d_from_output ? (b.G * O).abs().sum(1, true) * (2 * r_.e) : (b.P * g.dP.abs()).sum(1, true) * (b.n.sqrt() + 2) * r_.e;
  const Tensor cancelled = b.G.square().matmul(V_.square().t()).sqrt();
  const Tensor eT = b.P * ((g.dP.abs() + cancelled) * (r_.e * r_.k_dp) + eD);
  dq_b_.narrow(0, b.first, b.rows).copy_(eT.matmul(K_.abs()) * std::abs(h_.scale));
  dk_b_ += eT.t().matmul(b.Q.abs()) * std::abs(h_.scale);
}

void TorchHead::add_dv(const Block& b) {
  const Tensor P2 = b.P.square();
  Tensor w = P2 * b.eS2;
  if (r_.scores) {
    w = w + (P2 * (b.P * -2 + 1) * b.hS2 + P2 * (P2 * b.hS2).sum(1, true)) / 3;
  } else {
    w = w + P2 * (b.eL2 + r_.accumulation * static_cast<double>(h_.queries * h_.problem->group()));
  }
  const bool rounds_p = r_.ds || r_.scores;
  if (rounds_p) w = w + largest_error2(b, b.P, f_) / 3;
  dv_ += b.P.t().matmul(b.G);
  dv_var_ += w.t().matmul(b.G.square());
  const Tensor uniform = b.empty & b.reads.any(1, true);
  if (!rounds_p || !uniform.any().item<bool>()) return;
  uniform_dout_ += at::where(uniform, b.G, 0.0).sum(0, true);  // equal P round alike: their errors add up
  uniform_h2_.fill_(std::pow(std::max(r_.u / static_cast<double>(h_.stored_keys), r_.f), 2));
}

void TorchHead::add_sources(const Block& b, const Gradient& g) {
  const Tensor P2 = b.P.square(), dS2 = g.dS.square();
  p2_ += P2.sum(0).unsqueeze(1);
  p4_ += P2.square().sum(0).unsqueeze(1);
  ds2_ += dS2.sum(0).unsqueeze(1);
  ds4_ += dS2.square().sum(0).unsqueeze(1);
  seen_ += b.reads.to(at::kDouble).sum(0).unsqueeze(1);
  dq_nu_.narrow(0, b.first, b.rows).copy_(at::where(b.empty & b.reads.any(1, true), 0.0, sources(dS2, h_.d)));
}

std::vector<double> download(const Tensor& t) {
  const Tensor host = t.to(at::kCPU).contiguous();
  const double* data = host.const_data_ptr<double>();
  return {data, data + host.numel()};
}

HeadAnswer TorchHead::answer() {
  HeadAnswer out;
  const int64_t step = block_rows(h_.stored_keys, kBlockElements);
  for (int64_t first = 0; first < h_.queries && h_.stored_keys > 0; first += step) {
    const Block b = block(first, std::min(step, h_.queries - first));
    const Tensor hP2 = r_.p ? largest_error2(b, b.P, r_.p_normalised ? f_ : f_ / b.l) : at::zeros_like(b.P);
    const Tensor O = output(b, hP2);
    sample_scores(b, out);
    if (r_.scores && !score_rounding_is_small(b)) out.has_power = false;
    Gradient g;
    g.dP = b.G.matmul(V_.t());
    g.D = (b.G * O).sum(1, true);
    g.dS = b.P * (g.dP - g.D);
    g.sD2 = (b.P.square() * b.eS2 * (g.dP - g.D).square()).sum(1, true);
    if (r_.d_from_output) g.sD2 = g.sD2 + (hP2 / 3 * g.dP.square()).sum(1, true) + (b.G.square() * ulp_variance(O)).sum(1, true);
    if (r_.scores)
      add_eager_dq_dk(b, g);
    else
      add_dq_dk(b, g);
    add_allowances(b, g, O);
    add_dv(b);
    add_sources(b, g);
  }
  if (h_.stored_keys == 0) lse_.fill_(-std::numeric_limits<double>::infinity());
  dv_var_ += uniform_dout_.square() * (uniform_h2_ / 3);
  out.o = download(o_), out.o_variance = download(o_var_), out.o_freedom = download(o_nu_);
  out.lse = download(lse_), out.lse_sigma = download(sigma_);
  out.dq = download(dq_), out.dq_variance = download(dq_var_), out.dq_allowance = download(dq_b_);
  out.dq_freedom = download(dq_nu_);
  out.dk = download(dk_), out.dk_variance = download(dk_var_), out.dk_allowance = download(dk_b_);
  out.dv = download(dv_), out.dv_variance = download(dv_var_);
  out.p2 = download(p2_), out.p4 = download(p4_), out.ds2 = download(ds2_), out.ds4 = download(ds4_);
  for (const double count : download(seen_)) out.key_seen.push_back(count > 0);
  return out;
}

HeadGradients TorchHead::given_output(const double* o) {
  const Tensor O = upload(o, h_.queries, h_.dv);
  const int64_t step = block_rows(h_.stored_keys, kBlockElements);
  for (int64_t first = 0; first < h_.queries && h_.stored_keys > 0; first += step) {
    const Block b = block(first, std::min(step, h_.queries - first));
    Gradient g;
    g.dP = b.G.matmul(V_.t());
    g.D = (b.G * O.narrow(0, b.first, b.rows)).sum(1, true);
    g.dS = b.P * (g.dP - g.D);
    add_dq_dk(b, g);
  }
  return {download(dq_), download(dq_var_), download(dk_), download(dk_var_)};
}

}  // namespace

HeadAnswer torch_head(const HeadProblem& head, c10::Device device) {
  const at::NoGradGuard no_grad;
  return TorchHead(head, device).answer();
}

HeadGradients torch_head_given_output(const HeadProblem& head, const double* o, c10::Device device) {
  const at::NoGradGuard no_grad;
  return TorchHead(head, device).given_output(o);
}

}  // namespace attnbench
