#include "harness/attention/emulator_batch.hpp"

#include <algorithm>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

namespace attnbench::emulation {
void Sequence::find_reads(const Problem& problem, Conventions::EmptyRow empty_row) {
  reads.resize(queries());
  for (int64_t i = 0; i < queries(); ++i) {
    const int64_t diagonal = problem.align == Align::bottom_right ? i + real_keys - queries() : i;
    int64_t begin = 0, end = real_keys;
    if (problem.mask == Mask::causal) end = std::min(end, diagonal + 1);
    if (problem.window && problem.window->left >= 0) begin = std::max(begin, diagonal - problem.window->left);
    if (problem.window && problem.window->right >= 0) end = std::min(end, diagonal + problem.window->right + 1);
    if (begin < end)
      reads[i] = {begin, end, false};
    else if (empty_row != Conventions::EmptyRow::zero)
      reads[i] = {0, keys(), true};
  }
}

std::pair<int64_t, int64_t> Sequence::keys_read() const {
  int64_t begin = keys(), end = 0;
  for (const Reads& r : reads) {
    if (r.begin == r.end) continue;
    begin = std::min(begin, r.begin);
    end = std::max(end, r.end);
  }
  return {begin, std::max(begin, end)};
}

Batch::Batch(const Arithmetic& arithmetic, const ScoreOptions& options, const std::vector<Sequence>& sequences, Tensor Q,
             Tensor K, Tensor V, Tensor G)
    : a_(arithmetic), options_(options), Q_(std::move(Q)), K_(std::move(K)), V_(std::move(V)), G_(std::move(G)) {
  find_tiles(sequences);
  const int64_t count = static_cast<int64_t>(sequences.size()), queries = Q_.size(1);
  std::vector<int64_t> begin(count * queries), end(count * queries), filled(count * queries);
  for (int64_t n = 0; n < count; ++n) {
    for (int64_t i = 0; i < sequences[n].queries(); ++i) {
      const Reads& r = sequences[n].reads[i];
      begin[n * queries + i] = r.begin;
      end[n * queries + i] = r.end;
      filled[n * queries + i] = r.filled;
      any_filled_ = any_filled_ || r.filled;
    }
  }
  const auto on_device = [&](const std::vector<int64_t>& values) {
    return at::tensor(values, at::kLong).view({count, 1, queries, 1}).to(Q_.device());
  };
  begin_ = on_device(begin);
  end_ = on_device(end);
  filled_ = on_device(filled).to(at::kBool);
  keys_ = at::arange(K_.size(1), begin_.options());
}

/// Tiles that no row reads are left out.
void Batch::find_tiles(const std::vector<Sequence>& sequences) {
  const int64_t queries = Q_.size(1), keys = K_.size(1);
  for (int64_t first = 0; first < keys; first += kTile) {
    KeyTile tile{.first = first, .keys = std::min(kTile, keys - first), .begin = queries};
    for (const Sequence& s : sequences) {
      for (int64_t i = 0; i < s.queries(); ++i) {
        if (!s.reads[i].any_of(first, first + tile.keys)) continue;
        tile.begin = std::min(tile.begin, i);
        tile.end = std::max(tile.end, i + 1);
      }
    }
    if (tile.begin >= tile.end) continue;
    tile.partial_begin = tile.end;
    for (const Sequence& s : sequences) {
      for (int64_t i = tile.begin; i < tile.end; ++i) {
        if (i < s.queries() && s.reads[i].all_of(first, first + tile.keys)) continue;
        tile.partial_begin = std::min(tile.partial_begin, i);
        tile.partial_end = std::max(tile.partial_end, i + 1);
      }
    }
    tiles_.push_back(tile);
  }
}

/// Accumulated in fp32: by the tensor cores where both operands are of a low-precision dtype.
Tensor Batch::product(const Tensor& x, const Tensor& y) const {
  if (x.scalar_type() != at::kFloat && y.scalar_type() != at::kFloat) return at::bmm(x, y, at::kFloat);
  return at::bmm(x.to(at::kFloat), y.to(at::kFloat));
}

/// Sets x [sequences x heads, rows, keys] to `value` where a row does not read the key.
void Batch::hide(Tensor& x, const KeyTile& tile, double value) const {
  const int64_t rows = tile.partial_end - tile.partial_begin;
  if (rows <= 0) return;
  const Tensor j = keys_.narrow(0, tile.first, tile.keys);
  const auto of_rows = [&](const Tensor& t) { return t.narrow(2, tile.partial_begin, rows); };
  const Tensor hidden = (j < of_rows(begin_)).logical_or_(j >= of_rows(end_));
  x.view({begin_.size(0), -1, tile.rows(), tile.keys})
      .narrow(2, tile.partial_begin - tile.begin, rows)
      .masked_fill_(hidden, value);
}

/// s Q K^T.
Tensor Batch::products(const KeyTile& tile) const {
  Tensor S = product(tile.of_rows(Q_), tile.of_keys(K_).transpose(1, 2));
  if (a_.rounding.scores) S = round(S);
  S.mul_(a_.scale);
  return a_.rounding.scores ? round(S) : S;
}

void Batch::add_bias(Tensor& S, const KeyTile& tile) const {
  const Tensor j = keys_.narrow(0, tile.first, tile.keys);
  const Tensor i = at::arange(tile.begin, tile.end, keys_.options()).unsqueeze(1);
  S.view({begin_.size(0), -1, tile.rows(), tile.keys}).sub_((options_.offsets + i - j).abs() * options_.slopes);
}

/// What the softmax is of, hidden ones -inf; a filled row reads equal scores.
Tensor Batch::scores(const KeyTile& tile) const {
  Tensor S = products(tile);
  if (options_.softcap != 0) S.div_(options_.softcap).tanh_().mul_(options_.softcap);
  if (options_.slopes.defined()) add_bias(S, tile);
  if (any_filled_)
    S.view({begin_.size(0), -1, tile.rows(), tile.keys}).masked_fill_(filled_.narrow(2, tile.begin, tile.rows()), a_.filler);
  hide(S, tile, -kInfinity);
  return S;
}

/// P relative to the new maximum, to which l, and O if asked for, are rescaled.
Tensor Batch::online_softmax(const KeyTile& tile, bool rescales_output) {
  Tensor S = scores(tile), m = tile.of_rows(m_), l = tile.of_rows(l_);
  const Tensor largest = at::maximum(m, S.amax(-1, true));
  const Tensor shift = largest.masked_fill(largest == -kInfinity, 0);
  Tensor P = S.sub_(shift).exp_();
  hide(P, tile, 0);  // in a row of NaN too
  const Tensor shrink = (m - shift).exp_();
  l.mul_(shrink).add_(P.sum(-1, true));
  m.copy_(largest);
  if (rescales_output) tile.of_rows(O).mul_(shrink);
  return P;
}

/// The softmax itself, exp(S - m) / l, where it is what gets rounded or D is summed over it; else exp(S - L).
Tensor Batch::probabilities(const KeyTile& tile) const {
  const bool normalises = a_.rounding.p_normalised || !a_.rounding.d_from_output;
  Tensor P = scores(tile).sub_(tile.of_rows(normalises ? m_ : L_)).exp_();
  if (normalises) P.div_(tile.of_rows(l_));
  hide(P, tile, 0);
  return P;
}

void Batch::forward() {
  const Rounding& r = a_.rounding;
  const auto rows = [&](int64_t channels, double value) {
    return at::full({Q_.size(0), Q_.size(1), channels}, value, Q_.options().dtype(at::kFloat));
  };
  O = rows(V_.size(2), 0);
  m_ = rows(1, -kInfinity);
  l_ = rows(1, 0);
  if (options_.sinks.defined()) {
    m_.view({begin_.size(0), -1, Q_.size(1), 1}).copy_(options_.sinks).masked_fill_(filled_, -kInfinity);
    l_.copy_(m_ > -kInfinity);
  }
  if (r.p_normalised)
    for (const KeyTile& tile : tiles_) online_softmax(tile, false);
  if (r.p_normalised) settle_rows();
  for (const KeyTile& tile : tiles_) {
    Tensor P = r.p_normalised ? probabilities(tile) : online_softmax(tile, true);
    drop(P, tile);
    if (r.p) P = round(P).to(a_.operand);
    tile.of_rows(O).add_(product(P, tile.of_keys(V_)));
  }
  if (!r.p_normalised) settle_rows();
  if (!r.p_normalised) O.div_(l_);
  O = round(O);
}

/// After the last tile: L, and finite m and l in rows that read nothing.
void Batch::settle_rows() {
  const Tensor nothing = m_ == -kInfinity;
  m_.masked_fill_(nothing, 0);
  l_.masked_fill_(nothing, 1);
  L_ = m_ + l_.log();
}

Tensor Batch::lse() const {
  const Tensor empty = filled_.logical_or(begin_ == end_);
  return L_.view({begin_.size(0), -1, L_.size(1), 1}).masked_fill(empty, -kInfinity).view(L_.sizes());
}

void Batch::drop(Tensor& x, const KeyTile& tile) const {
  if (options_.factors.defined()) x.mul_(tile.of_rows(options_.factors).narrow(2, tile.first, tile.keys));
}

Tensor Batch::dp(const KeyTile& tile) const {
  Tensor dP = product(tile.of_rows(G_), tile.of_keys(V_).transpose(1, 2));
  if (a_.rounding.scores) dP = round(dP);
  drop(dP, tile);
  return dP;
}

/// D, from the rounded O or from P o dP.
Tensor Batch::row_sums() const {
  if (a_.rounding.d_from_output) return (O * G_).sum(-1, true);
  const Tensor D = at::zeros(L_.sizes(), L_.options());
  for (const KeyTile& tile : tiles_) tile.of_rows(D).add_(probabilities(tile).mul_(dp(tile)).sum(-1, true));
  return D;
}

void Batch::backward() {
  const auto like = [](const Tensor& t) { return at::zeros(t.sizes(), t.options().dtype(at::kFloat)); };
  dQ = like(Q_), dK = like(K_), dV = like(V_);
  const Tensor D = row_sums();
  for (const KeyTile& tile : tiles_) add_gradients(tile, D);
  if (!a_.rounding.scores) dQ.mul_(a_.scale), dK.mul_(a_.scale);
  dQ = round(dQ);
}

void Batch::add_gradients(const KeyTile& tile, const Tensor& D) {
  const Rounding& r = a_.rounding;
  Tensor P = probabilities(tile);
  if (r.ds_from_rounded_p) P = round(P);
  Tensor dS = dp(tile).sub_(tile.of_rows(D)).mul_(P);
  if (options_.softcap != 0) dS.mul_(products(tile).div_(options_.softcap).tanh_().square_().neg_().add_(1));
  drop(P, tile);
  if (r.ds || r.scores) {
    dS = round(dS);
    if (r.scores) dS = round(dS.mul_(a_.scale));
    P = round(P).to(a_.operand);
    dS = dS.to(a_.operand);
  }
  tile.of_rows(dQ).add_(product(dS, tile.of_keys(K_)));
  tile.of_keys(dK).copy_(product(dS.transpose(1, 2), tile.of_rows(Q_)));
  tile.of_keys(dV).copy_(product(P.transpose(1, 2), tile.of_rows(G_)));
}
}  // namespace attnbench::emulation
