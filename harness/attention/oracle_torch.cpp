// The oracle in LibTorch: float64 on any device, on heads of several sequences at once, in blocks of query rows. Products are
// LibTorch's; what happens between them is done row by row (oracle_torch_rows.hpp). A block launches work and never waits for it.
#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/oracle_torch_reads.hpp"
#include "harness/attention/oracle_torch_rows.hpp"
#include "harness/attention/tokens.hpp"

namespace attnbench {
namespace {

using at::Tensor;
using torch_oracle::BlockRows;
using torch_oracle::RowNumbers;
using torch_oracle::Span;
using torch_oracle::Stretch;

/// Elements of S in a block: on a CPU a few such matrices stay near the core, on a GPU they keep it busy.
constexpr int64_t kCpuBlockElements = 1 << 20, kGpuBlockElements = 1 << 23;
constexpr int64_t kMostCpuRows = 128;

class TorchHeads {
 public:
  explicit TorchHeads(const HeadProblem& h);  ///< which outlives it
  HeadAnswer answer();
  HeadGradients given_output(const Tensor& o);

 private:
  /// Rows of a block and the keys that they read.
  struct Block {
    Span span;
    BlockRows rows;
    std::vector<Tensor> memory;  ///< of what `rows` points to
    Tensor Q, G, Q2, K, V, K2, absK;
    Tensor P, W, w_mean, w_o, dS, w_q, w_k, w_v, PJ, eT, exact_dS, left_out, left_out_root;  ///< [heads, rows, keys]
  };

  void upload_reads();
  void hide_unread_keys();
  void make_answers();
  int64_t step() const;
  Tensor matrix(Block& b, double*& data) const;
  Block block(int64_t first, bool given, const torch_oracle::OfScores& out);
  void output(const Block& b);
  void add_dq_dk(const Block& b);
  void add_allowances_and_dv(const Block& b);
  void add_uniform_dout(const Block& b);
  Tensor filled_rows(const Block& b) const;
  Tensor uniform_values(const Block& b) const;
  HeadAnswer gathered(const Tensor& samples, const std::vector<int64_t>& owners) const;

  Tensor of_rows(const Tensor& all, const Span& s) const { return all.narrow(1, s.first, s.rows); }
  Tensor of_keys(const Tensor& all, const Span& s) const { return all.narrow(1, s.key, s.keys); }

  const HeadProblem& h_;
  const Rounding& r_;
  const double s2_;
  const at::TensorOptions options_;
  std::vector<std::vector<Stretch>> stretches_;  ///< by sequence and query
  torch_oracle::Setting setting_;
  std::vector<Tensor> reads_;              ///< what the setting points to, int64: begin, end, empty, diagonals, terms; seen
  Tensor slopes_, sinks_, first_samples_;  ///< what it points to, too
  Tensor key_seen_;                        ///< bool [sequences, stored_keys]
  Tensor Q_, K_, V_, G_, Q2_, K2_, V2_, G2_, absQ_, absK_;
  Tensor o_, o_var_, lse_, sigma_, o_nu_, dq_, dq_var_, dq_b_, dq_nu_;
  Tensor dk_, dk_var_, dk_b_, dv_, dv_var_, p2_, p4_, ds2_, ds4_, uniform_dout_;
};

TorchHeads::TorchHeads(const HeadProblem& h)
    : h_(h), r_(h.rounding), s2_(h.scale * h.scale), options_(h.q.options()), Q_(h.q), K_(h.k), V_(h.v), G_(h.dout) {
  for (const SequenceOfHeads& sequence : h.sequences) stretches_.push_back(torch_oracle::read_keys(h, sequence));
  setting_.on_gpu = h.q.is_cuda();
  setting_.rounding = r_;
  setting_.spacing = spacing_of(r_.dtype);
  setting_.scale = h.scale, setting_.softcap = h.problem->softcap;
  setting_.kept = 1 - h.problem->dropout.p;
  setting_.filler = h.empty_row == Conventions::EmptyRow::nan ? std::nan("") : 0;
  setting_.queries = h.queries, setting_.stored_keys = h.stored_keys, setting_.d = h.d, setting_.dv = h.dv;
  setting_.heads_of_sequence = h.heads / static_cast<int64_t>(h.sequences.size());
  setting_.factors = data_of(h.factors);
  upload_reads();
  if (h.empty_row == Conventions::EmptyRow::nan || h.sequences.size() > 1) hide_unread_keys();
  Q2_ = Q_.square(), K2_ = K_.square();
  absQ_ = Q_.abs(), absK_ = K_.abs();
  // Rows that no block writes read no key.
  const std::vector<int64_t> of_queries{h.heads, h.queries, h.d}, of_keys{h.heads, h.stored_keys, h.d};
  const std::vector<Tensor> zeros = zeros_together({of_queries, of_queries, of_keys, of_keys}, options_);
  dq_ = zeros[0], dq_var_ = zeros[1], dk_ = zeros[2], dk_var_ = zeros[3];
}

void TorchHeads::upload_reads() {
  std::vector<int64_t> begin, end, empty, diagonals, terms, seen;
  for (size_t n = 0; n < stretches_.size(); ++n) {
    for (const Stretch& s : stretches_[n]) begin.push_back(s.begin), end.push_back(s.end), empty.push_back(s.empty);
    diagonals.push_back(torch_oracle::diagonal_of(*h_.problem, h_.sequences[n]));
    terms.push_back(h_.sequences[n].queries * h_.problem->group());
    const std::vector<int64_t> read = torch_oracle::keys_read(stretches_[n], h_.stored_keys, true);
    seen.insert(seen.end(), read.begin(), read.end());
  }
  reads_ = to_tensors({begin, end, empty, diagonals, terms, seen}, options_.device());
  key_seen_ = (reads_[5] != 0).view({static_cast<int64_t>(h_.sequences.size()), h_.stored_keys});
  const auto int64s = [](const Tensor& t) { return t.const_data_ptr<int64_t>(); };
  setting_.begin = int64s(reads_[0]), setting_.end = int64s(reads_[1]), setting_.empty = int64s(reads_[2]);
  setting_.diagonals = int64s(reads_[3]), setting_.terms = int64s(reads_[4]);
  if (!h_.slopes.empty()) slopes_ = to_tensor(h_.slopes, options_.device());
  if (!h_.sinks.empty()) sinks_ = to_tensor(h_.sinks, options_.device());
  setting_.slopes = data_of(slopes_), setting_.sinks = data_of(sinks_);
}

/// Keys that no query sees may hold NaN, which a probability of 0 does not cancel. No block reaches them but one with an empty
/// row that is NaN whatever it reads, and one of several sequences, of which another one reads on.
void TorchHeads::hide_unread_keys() {
  const bool by_empty_rows = h_.empty_row != Conventions::EmptyRow::nan;
  std::vector<int64_t> read;
  for (const auto& stretches : stretches_) {
    const std::vector<int64_t> keys = torch_oracle::keys_read(stretches, h_.stored_keys, by_empty_rows);
    read.insert(read.end(), keys.begin(), keys.end());
  }
  if (std::ranges::all_of(read, [](int64_t is_read) { return is_read != 0; })) return;
  const auto sequences = static_cast<int64_t>(h_.sequences.size());
  const Tensor seen = (to_tensor(read, options_.device()) != 0).view({sequences, 1, h_.stored_keys, 1});
  for (Tensor* t : {&K_, &V_}) *t = at::where(seen, t->unflatten(0, {sequences, -1}), 0.0).flatten(0, 1);
}

/// Rows of a block.
int64_t TorchHeads::step() const {
  const int64_t elements = setting_.on_gpu ? kGpuBlockElements : kCpuBlockElements;
  const int64_t rows = std::max<int64_t>(elements / std::max<int64_t>(h_.stored_keys * h_.heads, 1), 16);
  return setting_.on_gpu ? rows : std::min(rows, kMostCpuRows);
}

Tensor TorchHeads::matrix(Block& b, double*& data) const {
  const Tensor& made = b.memory.emplace_back(at::empty({h_.heads, b.span.rows, b.span.keys}, options_));
  data = data_of(made);
  return made;
}

/// Its softmax. Where no key is read there are no matrices.
TorchHeads::Block TorchHeads::block(int64_t first, bool given, const torch_oracle::OfScores& out) {
  Block b;
  b.span = torch_oracle::span_of(stretches_, first, std::min(step(), h_.queries - first));
  if (b.span.keys == 0) return b;
  b.Q = of_rows(Q_, b.span), b.G = of_rows(G_, b.span), b.Q2 = of_rows(Q2_, b.span);
  b.K = of_keys(K_, b.span), b.V = of_keys(V_, b.span), b.K2 = of_keys(K2_, b.span), b.absK = of_keys(absK_, b.span);
  b.rows = {
      .s = setting_, .m = {}, .heads = h_.heads, .first = first, .rows = b.span.rows, .key = b.span.key, .keys = b.span.keys};
  const Tensor& numbers = b.memory.emplace_back(
      at::empty({h_.heads * b.span.rows, static_cast<int64_t>(sizeof(RowNumbers) / sizeof(double))}, options_));
  b.rows.numbers = reinterpret_cast<RowNumbers*>(numbers.mutable_data_ptr());
  torch_oracle::Matrices& m = b.rows.m;
  b.P = at::bmm(b.Q, b.K.mT()), m.P = data_of(b.P);
  const Tensor& terms = b.memory.emplace_back(at::bmm(of_rows(absQ_, b.span), b.absK.mT()));
  m.e2 = data_of(terms);
  b.W = b.P, m.W = m.P;
  if (h_.factors.defined() || r_.scores) b.W = matrix(b, m.W);
  b.PJ = b.P, m.PJ = m.P;
  if (setting_.softcap != 0) {
    matrix(b, m.tanh), matrix(b, m.eJ2);
    b.PJ = matrix(b, m.PJ);
  }
  if (r_.scores) matrix(b, m.vT), matrix(b, m.vP);
  if (!given) b.w_mean = matrix(b, m.w_mean), b.w_o = matrix(b, m.w_o);
  softmax_rows(b.rows, out);
  return b;
}

/// bool [heads, rows, 1]: empty and reads all stored keys.
Tensor TorchHeads::filled_rows(const Block& b) const {
  const Tensor filled = (reads_[2] != 0) & (reads_[0] < reads_[1]);
  const auto sequences = static_cast<int64_t>(h_.sequences.size());
  const Tensor of_heads = filled.view({sequences, h_.queries, 1}).repeat_interleave(setting_.heads_of_sequence, 0);
  return of_rows(of_heads, b.span);
}

/// Sum of V over the keys that a dropout has kept: [heads, rows, dv], or [heads, 1, dv] where all are.
Tensor TorchHeads::uniform_values(const Block& b) const {
  if (!h_.factors.defined()) return b.V.sum(1, true);
  return (of_rows(h_.factors, b.span).narrow(2, b.span.key, b.span.keys) != 0).to(at::kDouble).matmul(b.V);
}

void TorchHeads::output(const Block& b) {
  const Tensor O = at::bmm(b.W, b.V), mean = at::bmm(b.w_mean, b.V), squares = at::bmm(b.w_o, of_keys(V2_, b.span));
  Tensor uniform;
  if (b.span.fills) uniform = uniform_values(b);
  output_rows(b.rows, {.O = data_of(O),
                       .mean = data_of(mean),
                       .squares = data_of(squares),
                       .uniform = data_of(uniform),
                       .uniform_rows = uniform.defined() ? uniform.size(1) : 0,
                       .dout = data_of(G_),
                       .o = data_of(o_),
                       .variance = data_of(o_var_)});
}

void TorchHeads::add_dq_dk(const Block& b) {
  const Tensor dq = at::bmm(b.dS, b.K), squares = at::bmm(b.w_q, b.K2);
  torch_oracle::OfQueries q{.dq = data_of(dq), .squares = data_of(squares), .value = data_of(dq_), .variance = data_of(dq_var_)};
  Tensor allowance, of_d, exact, left_out, left_out_root;
  if (b.eT.defined()) {
    allowance = at::bmm(b.eT, b.absK), of_d = at::bmm(b.PJ, b.K);
    q.allowance = data_of(allowance), q.of_d = data_of(of_d), q.b = data_of(dq_b_);
  }
  if (r_.scores) {
    exact = at::bmm(b.exact_dS, b.K);
    q.exact = data_of(exact);
    if (b.left_out.defined()) {
      left_out = at::bmm(b.left_out, b.K2), left_out_root = at::bmm(b.left_out_root, b.K);
      q.left_out = data_of(left_out), q.left_out_root = data_of(left_out_root);
    }
  }
  query_gradient_rows(b.rows, q);
  // Eager's s dS is what is stored, and its variance that of s dS.
  of_keys(dk_, b.span).baddbmm_(b.dS.mT(), b.Q, 1, r_.scores ? 1 : h_.scale);
  of_keys(dk_var_, b.span).baddbmm_(b.w_k.mT(), b.Q2, 1, r_.scores ? 1 : s2_);
}

void TorchHeads::add_allowances_and_dv(const Block& b) {
  of_keys(dk_b_, b.span).baddbmm_(b.eT.mT(), of_rows(absQ_, b.span), 1, std::abs(h_.scale));
  of_keys(dv_, b.span).baddbmm_(b.W.mT(), b.G);
  of_keys(dv_var_, b.span).baddbmm_(b.w_v.mT(), of_rows(G2_, b.span));
  if (b.span.fills && r_.ds && !r_.scores) add_uniform_dout(b);
}

void TorchHeads::add_uniform_dout(const Block& b) {
  const Tensor dout = at::where(filled_rows(b), b.G, 0.0);
  if (!h_.factors.defined()) {
    uniform_dout_ += dout.sum(1, true);
    return;
  }
  const Tensor kept = of_rows(h_.factors, b.span).narrow(2, b.span.key, b.span.keys) != 0;
  of_keys(uniform_dout_, b.span).add_(kept.to(at::kDouble).mT().matmul(dout));
}

/// Rows that no block writes read no key.
void TorchHeads::make_answers() {
  const int64_t heads = h_.heads, queries = h_.queries, keys = h_.stored_keys;
  const std::vector<int64_t> of_key{heads, keys};
  const std::vector<Tensor> zeros = zeros_together({{heads, queries, h_.dv},
                                                    {heads, queries, h_.dv},
                                                    {heads, queries, h_.d},
                                                    {heads, keys, h_.d},
                                                    {heads, keys, h_.dv},
                                                    {heads, keys, h_.dv},
                                                    {heads, h_.factors.defined() ? keys : 1, h_.dv},
                                                    of_key,
                                                    of_key,
                                                    of_key,
                                                    of_key},
                                                   options_);
  o_ = zeros[0], o_var_ = zeros[1], dq_b_ = zeros[2], dk_b_ = zeros[3], dv_ = zeros[4], dv_var_ = zeros[5];
  uniform_dout_ = zeros[6], p2_ = zeros[7], p4_ = zeros[8], ds2_ = zeros[9], ds4_ = zeros[10];
  lse_ = at::full({heads, queries}, -kInfinity, options_), sigma_ = at::full({heads, queries}, 4 * r_.e, options_);
  o_nu_ = at::ones({heads, queries}, options_), dq_nu_ = at::ones({heads, queries}, options_);
}

HeadAnswer TorchHeads::answer() {
  const torch_oracle::Samples chosen = torch_oracle::choose_samples(h_, stretches_);
  first_samples_ = to_tensor(chosen.first, options_.device());
  setting_.first_samples = first_samples_.const_data_ptr<int64_t>();
  setting_.sampled_heads = static_cast<int64_t>(chosen.first.size()) / std::max<int64_t>(h_.queries, 1);
  const Tensor samples = at::zeros({static_cast<int64_t>(chosen.owners.size())}, options_);
  V2_ = V_.square(), G2_ = G_.square();
  make_answers();
  for (int64_t first = 0; first < h_.queries; first += step()) {
    Block b = block(first, /*given=*/false,
                    {.lse = data_of(lse_), .sigma = data_of(sigma_), .o_freedom = data_of(o_nu_), .samples = data_of(samples)});
    if (b.span.keys == 0) continue;
    output(b);
    torch_oracle::Matrices& m = b.rows.m;
    b.dS = at::bmm(b.G, b.V.mT()), m.dS = data_of(b.dS);
    b.w_q = at::bmm(of_rows(G2_, b.span), of_keys(V2_, b.span).mT()), m.w_q = data_of(b.w_q);
    b.w_k = b.w_o, m.w_k = m.w_o;
    b.w_v = b.w_mean, m.w_v = m.w_mean;
    b.eT = matrix(b, m.eT);
    if (r_.scores) b.exact_dS = matrix(b, m.exact_dS);
    if (r_.scores && h_.factors.defined()) b.left_out = matrix(b, m.left_out), b.left_out_root = matrix(b, m.left_out_root);
    gradient_rows(b.rows, /*given=*/false, data_of(dq_nu_));
    add_dq_dk(b);
    add_allowances_and_dv(b);
    if (!r_.scores) add_sources(b.rows, {.p2 = data_of(p2_), .p4 = data_of(p4_), .ds2 = data_of(ds2_), .ds4 = data_of(ds4_)});
  }
  // Uniform rows hold equal P, so that they round alike and their errors add up.
  std::vector<double> rounding;
  for (const SequenceOfHeads& sequence : h_.sequences) {
    const double P = 1 / static_cast<double>(std::max<int64_t>(sequence.stored_keys, 1));
    const double hB = std::max(P * r_.u / setting_.kept, r_.f);
    rounding.insert(rounding.end(), setting_.heads_of_sequence, hB * hB / 3);
  }
  dv_var_ += uniform_dout_.square() * to_tensor(rounding, options_.device()).view({-1, 1, 1});
  return gathered(samples, chosen.owners);
}

HeadAnswer TorchHeads::gathered(const Tensor& samples, const std::vector<int64_t>& owners) const {
  HeadAnswer out;
  out.o = o_, out.o_variance = o_var_, out.o_freedom = o_nu_;
  out.lse = lse_, out.lse_sigma = sigma_;
  out.dq = dq_, out.dq_variance = dq_var_, out.dq_allowance = dq_b_, out.dq_freedom = dq_nu_;
  out.dk = dk_, out.dk_variance = dk_var_, out.dk_allowance = dk_b_;
  out.dv = dv_, out.dv_variance = dv_var_;
  out.p2 = p2_, out.p4 = p4_, out.ds2 = ds2_, out.ds4 = ds4_;
  out.key_seen = key_seen_;
  out.score_samples = samples;
  out.sampled_heads = owners;
  return out;
}

HeadGradients TorchHeads::given_output(const Tensor& o) {
  const Tensor given = o.contiguous();
  for (int64_t first = 0; first < h_.queries; first += step()) {
    Block b = block(first, /*given=*/true, {});
    if (b.span.keys == 0) continue;
    given_output_rows(b.rows, data_of(given), data_of(G_));
    torch_oracle::Matrices& m = b.rows.m;
    b.dS = at::bmm(b.G, b.V.mT()), m.dS = data_of(b.dS);
    b.w_q = matrix(b, m.w_q), b.w_k = matrix(b, m.w_k);
    gradient_rows(b.rows, /*given=*/true, nullptr);
    add_dq_dk(b);
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
