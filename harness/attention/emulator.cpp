// The same-precision emulator in LibTorch operations, on the inputs' device: all query rows and heads of a batch of
// sequences against one tile of 64 keys after the other, fp32 arithmetic, rounding where the profile says.
//   P unnormalised or not rounded: online softmax, P relative to the running maximum.
//   P normalised: one sweep for the row's maximum and sum, another for P V.
//   D from P o dP: one sweep for D, another for the gradients.
// It is a yardstick of ordinary error, not of right values: only its error energy is used.
#include "harness/attention/emulator.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/error_model.hpp"
#include "harness/attention/parallel.hpp"

namespace attnbench {
namespace {

using at::Tensor;

constexpr int64_t kTile = 64;
constexpr int64_t kBatchRows = 1 << 18;  ///< (sequence, head, token) rows: a tile of scores takes 64 MiB
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// The keys [begin, end) of its sequence that a query reads. filled: it sees none, and reads all as if they were equal.
struct Reads {
  int64_t begin = 0, end = 0;
  bool filled = false;

  bool any_of(int64_t first, int64_t last) const { return begin < last && end > first; }
  bool all_of(int64_t first, int64_t last) const { return begin <= first && end >= last && !filled; }
};

struct Sequence {
  std::vector<int64_t> q_rows, k_rows;  ///< storage rows; k_rows: real keys, then the padding that uniform empty rows read
  int64_t real_keys = 0;
  std::vector<Reads> reads;  ///< by query

  int64_t queries() const { return static_cast<int64_t>(q_rows.size()); }
  int64_t keys() const { return static_cast<int64_t>(k_rows.size()); }
  void find_reads(const Problem& problem, Conventions::EmptyRow empty_row);
  /// Nobody reads the others, which may hold anything.
  std::pair<int64_t, int64_t> keys_read() const;
};

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

/// Storage rows of tokens, and their places in a batch [sequences x longest].
struct Places {
  std::vector<int64_t> rows, places;

  void add(int64_t row, int64_t place) {
    rows.push_back(row);
    places.push_back(place);
  }
};

/// A tile of keys [first, first + keys) and the query rows [begin, end) around all that read some of it; rows outside
/// [partial_begin, partial_end) read all of it.
struct KeyTile {
  int64_t first = 0, keys = 0, begin = 0, end = 0, partial_begin = 0, partial_end = 0;

  int64_t rows() const { return end - begin; }
  Tensor of_rows(const Tensor& t) const { return t.narrow(1, begin, rows()); }
  Tensor of_keys(const Tensor& t) const { return t.narrow(1, first, keys); }
};

/// What the arithmetic of a case is like.
struct Arithmetic {
  Rounding rounding;
  double scale = 0;
  double filler = 0;  ///< score of the keys of a filled row: 0, or NaN
  at::ScalarType dtype = at::kFloat;
  at::ScalarType operand = at::kFloat;  ///< of rounded values in a product: the tensor cores' dtype; on a CPU fp32
};

/// Attention of [sequences x heads, queries, channels] in which each sequence is padded with zeros to the longest.
class Batch {
 public:
  Batch(const Arithmetic& arithmetic, const std::vector<Sequence>& sequences, Tensor Q, Tensor K, Tensor V, Tensor G);
  void forward();
  void backward();
  /// [sequences x heads, queries, 1]; -inf for a query that sees no key.
  Tensor lse() const;

  Tensor O;           ///< rounded
  Tensor dQ, dK, dV;  ///< by query head; dQ rounded, dK and dV not

 private:
  void find_tiles(const std::vector<Sequence>& sequences);
  Tensor round(const Tensor& x) const { return x.to(a_.dtype).to(at::kFloat); }
  Tensor product(const Tensor& x, const Tensor& y) const;
  void hide(Tensor& x, const KeyTile& tile, double value) const;
  Tensor scores(const KeyTile& tile) const;
  Tensor dp(const KeyTile& tile) const;
  Tensor online_softmax(const KeyTile& tile, bool rescales_output);
  void settle_rows();
  Tensor probabilities(const KeyTile& tile) const;
  Tensor row_sums() const;
  void add_gradients(const KeyTile& tile, const Tensor& D);

  const Arithmetic& a_;
  Tensor Q_, K_, V_, G_;
  Tensor m_, l_, L_;             ///< [sequences x heads, queries, 1]
  Tensor begin_, end_, filled_;  ///< Reads, [sequences, 1, queries, 1]
  Tensor keys_;                  ///< 0, 1, 2, …
  bool any_filled_ = false;
  std::vector<KeyTile> tiles_;
};

Batch::Batch(const Arithmetic& arithmetic, const std::vector<Sequence>& sequences, Tensor Q, Tensor K, Tensor V, Tensor G)
    : a_(arithmetic), Q_(std::move(Q)), K_(std::move(K)), V_(std::move(V)), G_(std::move(G)) {
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

/// s S, hidden ones -inf; a filled row reads equal scores.
Tensor Batch::scores(const KeyTile& tile) const {
  Tensor S = product(tile.of_rows(Q_), tile.of_keys(K_).transpose(1, 2));
  if (a_.rounding.scores) S = round(S);
  S.mul_(a_.scale);
  if (a_.rounding.scores) S = round(S);
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
  if (r.p_normalised)
    for (const KeyTile& tile : tiles_) online_softmax(tile, false);
  if (r.p_normalised) settle_rows();
  for (const KeyTile& tile : tiles_) {
    Tensor P = r.p_normalised ? probabilities(tile) : online_softmax(tile, true);
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

Tensor Batch::dp(const KeyTile& tile) const {
  const Tensor dP = product(tile.of_rows(G_), tile.of_keys(V_).transpose(1, 2));
  return a_.rounding.scores ? round(dP) : dP;
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
  Tensor P = probabilities(tile), dS = dp(tile).sub_(tile.of_rows(D)).mul_(P);
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

/// Key heads [first, first + count), and with them their query heads.
struct KeyHeads {
  int64_t first = 0, count = 0;
};

/// One case: sequences of as many tiles are computed together; on a GPU all heads too, on a CPU one key head at a time.
class Emulation {
 public:
  Emulation(const Case& c, const Inputs& inputs, const Profile& profile, const Conventions& conventions);
  Outputs outputs();

 private:
  Sequence sequence(int64_t n, int64_t first_query, int64_t first_key) const;
  std::vector<std::vector<Sequence>> batches() const;
  std::vector<KeyHeads> pieces() const;
  void emulate(const std::vector<Sequence>& sequences, const KeyHeads& part) const;
  Tensor gather(const Tensor& tensor, const KeyHeads& part, const Places& from, int64_t sequences, int64_t longest) const;
  Tensor heads_of(const Tensor& tensor, const KeyHeads& part) const;
  void scatter(const Tensor& storage, const KeyHeads& part, const Tensor& batch, const Places& to) const;
  Tensor sum_over_group(Tensor gradient) const;
  Tensor index(const std::vector<int64_t>& values) const { return at::tensor(values, at::kLong).to(inputs_.q.device()); }

  const Problem& problem_;
  const Inputs& inputs_;
  const Conventions conventions_;
  Arithmetic arithmetic_;
  Tensor o_, lse_, dq_, dk_, dv_;  ///< [storage rows, heads, channels]
};

Emulation::Emulation(const Case& c, const Inputs& inputs, const Profile& profile, const Conventions& conventions)
    : problem_(c.problem), inputs_(inputs), conventions_(conventions) {
  const Problem& p = problem_;
  arithmetic_.rounding = rounding_of(profile, p, inputs.scale);
  arithmetic_.scale = inputs.scale;
  arithmetic_.filler = conventions.empty_row == Conventions::EmptyRow::nan ? std::nan("") : 0;
  arithmetic_.dtype = p.dtype == Dtype::bf16 ? at::kBFloat16 : p.dtype == Dtype::fp16 ? at::kHalf : at::kFloat;
  arithmetic_.operand = inputs.q.is_cuda() ? arithmetic_.dtype : at::kFloat;
  const auto storage = [&](int64_t rows, int64_t heads, int64_t channels) {
    return at::zeros({rows, heads, channels}, inputs.q.options());
  };
  o_ = storage(inputs.q_storage_rows(), p.hq, p.dv);
  dq_ = storage(inputs.q_storage_rows(), p.hq, p.d);
  dk_ = storage(inputs.k_storage_rows(), p.hkv, p.d);
  dv_ = storage(inputs.k_storage_rows(), p.hkv, p.dv);
  lse_ = at::full({inputs.q_storage_rows(), p.hq, 1}, -kInfinity, inputs.q.options().dtype(at::kFloat));
}

Sequence Emulation::sequence(int64_t n, int64_t first_query, int64_t first_key) const {
  Sequence s;
  s.real_keys = inputs_.lengths.k[n];
  const auto q_begin = inputs_.q_rows.begin() + first_query, k_begin = inputs_.k_rows.begin() + first_key;
  const auto k_end = k_begin + s.real_keys;
  s.q_rows.assign(q_begin, q_begin + inputs_.lengths.q[n]);
  s.k_rows.assign(k_begin, k_end);
  if (problem_.layout == Layout::padded && conventions_.empty_row == Conventions::EmptyRow::uniform) {
    const int64_t pitch = inputs_.lengths.k_pitch;
    for (int64_t row = n * pitch; row < (n + 1) * pitch; ++row)
      if (!std::binary_search(k_begin, k_end, row)) s.k_rows.push_back(row);
  }
  s.find_reads(problem_, conventions_.empty_row);
  return s;
}

std::vector<std::vector<Sequence>> Emulation::batches() const {
  std::map<std::pair<int64_t, int64_t>, std::vector<Sequence>> open;  // by tiles of queries and of keys
  std::vector<std::vector<Sequence>> all;
  int64_t first_query = 0, first_key = 0;
  for (size_t n = 0; n < inputs_.lengths.q.size(); ++n) {
    Sequence s = sequence(static_cast<int64_t>(n), first_query, first_key);
    first_query += inputs_.lengths.q[n];
    first_key += inputs_.lengths.k[n];
    if (s.queries() == 0 || s.keys() == 0) continue;
    const std::pair tiles{(s.queries() + kTile - 1) / kTile, (s.keys() + kTile - 1) / kTile};
    std::vector<Sequence>& batch = open[tiles];
    batch.push_back(std::move(s));
    const int64_t rows = static_cast<int64_t>(batch.size() + 1) * problem_.hq * std::max(tiles.first, tiles.second) * kTile;
    if (rows > kBatchRows) all.push_back(std::exchange(batch, {}));
  }
  for (auto& [tiles, batch] : open)
    if (!batch.empty()) all.push_back(std::move(batch));
  return all;
}

std::vector<KeyHeads> Emulation::pieces() const {
  if (!inputs_.q.is_cpu()) return {{0, problem_.hkv}};
  std::vector<KeyHeads> pieces;
  for (int64_t head = 0; head < problem_.hkv; ++head) pieces.push_back({head, 1});
  return pieces;
}

/// Of [rows, hq or hkv, channels].
Tensor Emulation::heads_of(const Tensor& tensor, const KeyHeads& part) const {
  const int64_t per_key_head = tensor.size(1) / problem_.hkv;
  return tensor.narrow(1, part.first * per_key_head, part.count * per_key_head);
}

/// [sequences x query heads of the part, longest, channels], 0 where a batch has no token; a key head repeated for each of its
/// query heads.
Tensor Emulation::gather(const Tensor& tensor, const KeyHeads& part, const Places& from, int64_t sequences,
                         int64_t longest) const {
  const int64_t all = tensor.size(-2), channels = tensor.size(-1), rows = tensor.numel() / (all * channels);
  const Tensor tokens =
      heads_of(tensor.detach().reshape({rows, all, channels}), part).index_select(0, index(from.rows)).to(arithmetic_.operand);
  const int64_t heads = tokens.size(1);
  Tensor batch = at::zeros({sequences * longest, heads, channels}, tokens.options());
  batch = batch.index_copy_(0, index(from.places), tokens).view({sequences, longest, heads, channels}).transpose(1, 2);
  if (all != problem_.hq) batch = batch.repeat_interleave(problem_.group(), 1);
  return batch.reshape({-1, longest, channels});
}

/// The reverse, of [sequences, heads, longest, channels].
void Emulation::scatter(const Tensor& storage, const KeyHeads& part, const Tensor& batch, const Places& to) const {
  const Tensor tokens = batch.transpose(1, 2).flatten(0, 1).index_select(0, index(to.places));
  heads_of(storage, part).index_copy_(0, index(to.rows), tokens.to(storage.scalar_type()));
}

/// The rounded gradients of the key heads, from [sequences, query heads, keys, channels].
Tensor Emulation::sum_over_group(Tensor gradient) const {
  const at::ScalarType dtype = arithmetic_.dtype;
  if (arithmetic_.rounding.gqa_partials) gradient = gradient.to(dtype).to(at::kFloat);
  return gradient.unflatten(1, {-1, problem_.group()}).sum(2).to(dtype);
}

void Emulation::emulate(const std::vector<Sequence>& sequences, const KeyHeads& part) const {
  const auto count = static_cast<int64_t>(sequences.size());
  int64_t queries = 0, keys = 0;
  for (const Sequence& s : sequences) queries = std::max(queries, s.queries()), keys = std::max(keys, s.keys());
  Places all_queries, keys_read, real_keys;
  for (int64_t n = 0; n < count; ++n) {
    const Sequence& s = sequences[n];
    const auto [begin, end] = s.keys_read();
    for (int64_t i = 0; i < s.queries(); ++i) all_queries.add(s.q_rows[i], n * queries + i);
    for (int64_t j = begin; j < end; ++j) keys_read.add(s.k_rows[j], n * keys + j);
    for (int64_t j = 0; j < s.real_keys; ++j) real_keys.add(s.k_rows[j], n * keys + j);
  }
  Batch batch(arithmetic_, sequences, gather(inputs_.q, part, all_queries, count, queries),
              gather(inputs_.k, part, keys_read, count, keys), gather(inputs_.v, part, keys_read, count, keys),
              gather(inputs_.dout, part, all_queries, count, queries));
  batch.forward();
  batch.backward();
  const auto by_head = [&](const Tensor& t) { return t.unflatten(0, {count, -1}); };
  scatter(o_, part, by_head(batch.O), all_queries);
  scatter(lse_, part, by_head(batch.lse()), all_queries);
  scatter(dq_, part, by_head(batch.dQ), all_queries);
  scatter(dk_, part, sum_over_group(by_head(batch.dK)), real_keys);
  scatter(dv_, part, sum_over_group(by_head(batch.dV)), real_keys);
}

Outputs Emulation::outputs() {
  const std::vector<std::vector<Sequence>> all = batches();
  const std::vector<KeyHeads> parts = pieces();
  const auto count = static_cast<int64_t>(parts.size());
  for_each_piece(inputs_.q.device(), static_cast<int64_t>(all.size()) * count, [&](int64_t i) {
    const at::NoGradGuard no_grad;  // which is each thread's own
    emulate(all[i / count], parts[i % count]);
  });
  const auto laid_out = [](const Tensor& rows, const Tensor& like) {
    std::vector<int64_t> sizes = like.sizes().vec();
    sizes[sizes.size() - 2] = rows.size(1);
    sizes.back() = rows.size(2);
    return rows.view(sizes);
  };
  return {laid_out(o_, inputs_.q), laid_out(lse_, inputs_.q).squeeze(-1), laid_out(dq_, inputs_.q), laid_out(dk_, inputs_.k),
          laid_out(dv_, inputs_.k)};
}

}  // namespace

Outputs emulate(const Case& c, const Inputs& inputs, const Profile& profile, const Conventions& conventions) {
  const at::NoGradGuard no_grad;
  const at::NoTF32Guard no_tf32;
  return Emulation(c, inputs, profile, conventions).outputs();
}

}  // namespace attnbench
