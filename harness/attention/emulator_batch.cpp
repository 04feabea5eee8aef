#include "harness/attention/emulator_batch.hpp"

#include <algorithm>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/tokens.hpp"

namespace attnbench::emulation {
namespace {

/// Elements of a matrix of scores in a block: on a CPU a few of them stay near the core, on a GPU they keep it busy.
constexpr int64_t kCpuBlockElements = 1 << 17, kGpuBlockElements = 1 << 24;
constexpr int64_t kLeastRows = 16;  ///< fewer would leave the products narrow

/// 0 for the maximum of a row that reads nothing.
Tensor finite(const Tensor& m) {
  return m.masked_fill(m == -kInfinity, 0);
}

}  // namespace

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
  note_reads(sequences);
  const auto zeros = [&](const Tensor& like) { return at::zeros(like.sizes(), like.options().dtype(at::kFloat)); };
  O = zeros(G_), dQ = zeros(Q_), dK = zeros(K_), dV = zeros(V_);
  lse = at::full({Q_.size(0), Q_.size(1), 1}, -kInfinity, O.options());
}

void Batch::note_reads(const std::vector<Sequence>& sequences) {
  const int64_t count = static_cast<int64_t>(sequences.size()), queries = Q_.size(1), keys = K_.size(1);
  std::vector<int64_t> begin(count * queries), end(count * queries), filled(count * queries);
  around_.assign(queries, {keys, 0});
  for (int64_t n = 0; n < count; ++n) {
    any_hidden_ = any_hidden_ || sequences[n].queries() < queries;
    for (int64_t i = 0; i < sequences[n].queries(); ++i) {
      const Reads& r = sequences[n].reads[i];
      begin[n * queries + i] = r.begin;
      end[n * queries + i] = r.end;
      filled[n * queries + i] = r.filled;
      any_filled_ = any_filled_ || r.filled;
      any_hidden_ = any_hidden_ || r.begin > 0 || r.end < keys;
      if (r.begin < r.end) around_[i] = {std::min(around_[i].first, r.begin), std::max(around_[i].second, r.end)};
    }
  }
  const auto on_device = [&](const std::vector<int64_t>& values) {
    return to_tensor(values, Q_.device()).view({count, 1, queries, 1});
  };
  begin_ = on_device(begin);
  end_ = on_device(end);
  filled_ = on_device(filled).to(at::kBool);
  keys_ = at::arange(keys, begin_.options());
}

/// Accumulated in fp32: by the tensor cores where both operands are of a low-precision dtype.
Tensor Batch::product(const Tensor& x, const Tensor& y) const {
  if (x.scalar_type() != at::kFloat && y.scalar_type() != at::kFloat) return at::bmm(x, y, at::kFloat);
  return at::bmm(x.to(at::kFloat), y.to(at::kFloat));
}

Batch::Block Batch::block(int64_t first, int64_t rows) const {
  int64_t begin = K_.size(1), end = 0;
  for (int64_t i = first; i < first + rows; ++i) {
    begin = std::min(begin, around_[i].first / kTile * kTile);
    end = std::max(end, tiles_of(around_[i].second) * kTile);
  }
  Block b;
  b.first = first, b.rows = rows;
  b.key = begin, b.keys = std::max<int64_t>(end - begin, 0);
  if (b.keys > 0) score(b);
  return b;
}

/// Takes ALiBi's bias off the scores.
void Batch::add_bias(const Block& b) const {
  const Tensor i = at::arange(b.first, b.first + b.rows, keys_.options()).unsqueeze(1);
  by_head(b.S).sub_((options_.offsets + i - keys_.narrow(0, b.key, b.keys)).abs() * options_.slopes);
}

/// What the softmax is of: hidden keys -inf; a filled row reads equal scores.
void Batch::score(Block& b) const {
  b.S = product(b.of_rows(Q_), b.of_keys(K_).transpose(1, 2));
  if (a_.rounding.scores) b.S = round(b.S);
  b.S.mul_(a_.scale);
  if (a_.rounding.scores) b.S = round(b.S);
  if (options_.softcap != 0) {
    b.capped = b.S.div_(options_.softcap).tanh_();
    b.S = b.capped * options_.softcap;
  }
  if (options_.slopes.defined()) add_bias(b);
  const auto of_rows = [&](const Tensor& t) { return t.narrow(2, b.first, b.rows); };
  if (any_filled_) by_head(b.S).masked_fill_(of_rows(filled_), a_.filler);
  if (!any_hidden_) return;
  const Tensor j = keys_.narrow(0, b.key, b.keys);
  b.hidden = (j < of_rows(begin_)).logical_or_(j >= of_rows(end_));
  by_head(b.S).masked_fill_(b.hidden, -kInfinity);
}

/// exp of what was taken from scores; of hidden ones 0 in a row of NaN too.
Tensor Batch::exponentials(const Block& b, Tensor x) const {
  x.exp_();
  if (any_filled_ && b.hidden.defined()) by_head(x).masked_fill_(b.hidden, 0);
  return x;
}

/// A row's sink, or -inf: [sequences x heads, rows, 1].
Tensor Batch::sinks(const Block& b) const {
  const Tensor sinks = at::full({Q_.size(0), b.rows, 1}, -kInfinity, b.S.options());
  if (!options_.sinks.defined()) return sinks;
  by_head(sinks).copy_(options_.sinks).masked_fill_(filled_.narrow(2, b.first, b.rows), -kInfinity);
  return sinks;
}

/// The sum of a row, and with it L.
void Batch::settle(Block& b, const Tensor& l) const {
  b.l = l.masked_fill(l == 0, 1);
  b.L = b.m + b.l.log();
}

/// O of P that are relative to the maximum so far, by tiles, and are rescaled to the last one's.
Tensor Batch::online_output(Block& b) const {
  const Tensor tiles = b.S.unflatten(2, {-1, kTile}), sink = sinks(b);
  const Tensor so_far = at::maximum(std::get<0>(tiles.amax(-1).cummax(-1)), sink);
  const Tensor shift = finite(so_far);
  b.m = shift.narrow(2, -1, 1);
  const Tensor shrink = (so_far - b.m).exp_();
  Tensor P = exponentials(b, (tiles - shift.unsqueeze(-1)).flatten(2));
  settle(b, P.unflatten(2, {-1, kTile}).sum(-1).mul_(shrink).sum(-1, true).add_((sink - b.m).exp_()));
  drop(P, b);
  if (a_.rounding.p) P = round(P);
  P.unflatten(2, {-1, kTile}).mul_(shrink.unsqueeze(-1));
  return round(product(P, b.of_keys(V_)).div_(b.l));
}

/// The softmax itself.
Tensor Batch::softmax(Block& b) const {
  const Tensor sink = sinks(b);
  b.m = finite(at::maximum(b.S.amax(-1, true), sink));
  Tensor P = exponentials(b, b.S - b.m);
  settle(b, P.sum(-1, true).add_((sink - b.m).exp_()));
  return P.div_(b.l);
}

/// O of normalised P.
Tensor Batch::output(const Block& b, Tensor P) const {
  drop(P, b);
  if (a_.rounding.p) P = round(P).to(a_.operand);
  return round(product(P, b.of_keys(V_)));
}

/// One block of rows after the other: a few matrices of so many scores are the memory it takes.
void Batch::run() {
  const int64_t elements = Q_.is_cpu() ? kCpuBlockElements : kGpuBlockElements;
  const int64_t step = std::max(elements / (Q_.size(0) * K_.size(1)), kLeastRows);
  for (int64_t first = 0; first < Q_.size(1); first += step) {
    Block b = block(first, std::min(step, Q_.size(1) - first));
    if (b.keys > 0) compute(b);
  }
  if (!a_.rounding.scores && !a_.rounding.scales_ds) dQ.mul_(a_.scale), dK.mul_(a_.scale);
  dQ = round(dQ);
}

void Batch::compute(Block& b) {
  const Rounding& r = a_.rounding;
  Tensor P;
  if (r.p_normalised) {
    P = softmax(b);
    b.of_rows(O).copy_(output(b, P.clone()));
  } else {
    b.of_rows(O).copy_(online_output(b));
    P = r.d_from_output ? exponentials(b, b.S - b.L) : exponentials(b, b.S - b.m).div_(b.l);
  }
  const Tensor empty = filled_.logical_or(begin_ == end_).narrow(2, b.first, b.rows);
  b.of_rows(lse).copy_(by_head(b.L).masked_fill(empty, -kInfinity).flatten(0, 1));
  add_gradients(b, P);
}

void Batch::drop(Tensor& x, const Block& b) const {
  if (options_.factors.defined()) x.mul_(b.of_rows(options_.factors).narrow(2, b.key, b.keys));
}

void Batch::add_gradients(const Block& b, Tensor P) {
  const Rounding& r = a_.rounding;
  const Tensor G = b.of_rows(G_);
  Tensor dP = product(G, b.of_keys(V_).transpose(1, 2));
  if (r.scores) dP = round(dP);
  drop(dP, b);
  const Tensor D = (r.d_from_output ? b.of_rows(O) * G : P * dP).sum(-1, true);
  if (r.ds_from_rounded_p) P = round(P);
  Tensor dS = dP.sub_(D).mul_(P);
  if (b.capped.defined()) dS.mul_(b.capped.square().neg_().add_(1));
  drop(P, b);
  if (r.ds || r.scores) {
    if (r.scales_ds) dS.mul_(a_.scale);
    dS = round(dS);
    if (r.scores) dS = round(dS.mul_(a_.scale));
    P = round(P).to(a_.operand);
    dS = dS.to(a_.operand);
  }
  b.of_rows(dQ).copy_(product(dS, b.of_keys(K_)));
  b.of_keys(dK).add_(product(dS.transpose(1, 2), b.of_rows(Q_)));
  b.of_keys(dV).add_(product(P.transpose(1, 2), G));
}
}  // namespace attnbench::emulation
