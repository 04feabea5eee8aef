// The same-precision emulator: gathers the sequences of a case into batches, which emulator_batch.hpp computes, and lays the
// results out as the case has them.
// It says what error is ordinary, not what values are right.
#include "harness/attention/emulator.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/emulator_batch.hpp"
#include "harness/attention/kept.hpp"
#include "harness/attention/parallel.hpp"
#include "harness/attention/tokens.hpp"
#include "harness/attention/torch_dtype.hpp"

namespace attnbench {
namespace {

using namespace emulation;

constexpr int64_t kBatchRows = 1 << 18;  ///< (sequence, head, token) rows: in float32 with 128 channels 128 MiB of each tensor

/// Storage rows of tokens, and their places in a batch [sequences x longest]: int64, where the tokens are.
struct Places {
  Tensor rows, places;
};

/// Places before they are where the tokens are.
class PlacesOnHost {
 public:
  void add(int64_t row, int64_t place) {
    rows_.push_back(row);
    places_.push_back(place);
  }
  Places to(c10::Device device) const { return {to_tensor(rows_, device), to_tensor(places_, device)}; }

 private:
  std::vector<int64_t> rows_, places_;
};

/// Key heads [first, first + count), and with them their query heads.
struct KeyHeads {
  int64_t first = 0, count = 0;
};

/// Queries and keys that a batch has of each sequence: those of the longest, keys to whole tiles.
std::pair<int64_t, int64_t> longest_of(const std::vector<Sequence>& sequences) {
  int64_t queries = 0, keys = 0;
  for (const Sequence& s : sequences) queries = std::max(queries, s.queries()), keys = std::max(keys, s.keys());
  return {queries, tiles_of(keys) * kTile};
}

/// One case: sequences of as many tiles are computed together; on a GPU all heads too, on a CPU one key head at a time.
class Emulation {
 public:
  Emulation(const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row);
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
  Tensor factors_of(const std::vector<Sequence>& sequences, int64_t first, int64_t heads) const;
  ScoreOptions options_of(const std::vector<Sequence>& sequences, const KeyHeads& part) const;

  const Problem& problem_;
  const Inputs& inputs_;
  const Conventions::EmptyRow empty_row_;
  Arithmetic arithmetic_;
  Tensor o_, lse_, dq_, dk_, dv_;  ///< [storage rows, heads, channels]
};

Emulation::Emulation(const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row)
    : problem_(c.problem), inputs_(inputs), empty_row_(empty_row) {
  const Problem& p = problem_;
  arithmetic_.rounding = rounding_of(profile, p);
  arithmetic_.scale = inputs.scale;
  arithmetic_.filler = empty_row == Conventions::EmptyRow::nan ? std::nan("") : 0;
  arithmetic_.dtype = torch_dtype(p.dtype);
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
  s.number = n;
  s.real_keys = inputs_.lengths.k[n];
  const auto q_begin = inputs_.q_rows.begin() + first_query, k_begin = inputs_.k_rows.begin() + first_key;
  const auto k_end = k_begin + s.real_keys;
  s.q_rows.assign(q_begin, q_begin + inputs_.lengths.q[n]);
  s.k_rows.assign(k_begin, k_end);
  if (problem_.layout == Layout::padded && empty_row_ == Conventions::EmptyRow::uniform) {
    const int64_t pitch = inputs_.lengths.k_pitch;
    for (int64_t row = n * pitch; row < (n + 1) * pitch; ++row)
      if (!std::binary_search(k_begin, k_end, row)) s.k_rows.push_back(row);
  }
  s.find_reads(problem_, empty_row_);
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
    const std::pair tiles{tiles_of(s.queries()), tiles_of(s.keys())};
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
      heads_of(tensor.detach().reshape({rows, all, channels}), part).index_select(0, from.rows).to(arithmetic_.operand);
  const int64_t heads = tokens.size(1);
  Tensor batch = at::zeros({sequences * longest, heads, channels}, tokens.options());
  batch = batch.index_copy_(0, from.places, tokens).view({sequences, longest, heads, channels}).transpose(1, 2);
  if (all != problem_.hq) batch = batch.repeat_interleave(problem_.group(), 1);
  return batch.reshape({-1, longest, channels});
}

/// The reverse, of [sequences, heads, longest, channels].
void Emulation::scatter(const Tensor& storage, const KeyHeads& part, const Tensor& batch, const Places& to) const {
  const Tensor tokens = batch.transpose(1, 2).flatten(0, 1).index_select(0, to.places);
  heads_of(storage, part).index_copy_(0, to.rows, tokens.to(storage.scalar_type()));
}

/// The rounded gradients of the key heads, from [sequences, query heads, keys, channels].
Tensor Emulation::sum_over_group(Tensor gradient) const {
  const at::ScalarType dtype = arithmetic_.dtype;
  if (arithmetic_.rounding.gqa_partials) gradient = gradient.to(dtype).to(at::kFloat);
  return gradient.unflatten(1, {-1, problem_.group()}).sum(2).to(dtype);
}

/// kept / (1 - p) of the query heads; 0 beyond a shorter sequence's.
Tensor Emulation::factors_of(const std::vector<Sequence>& sequences, int64_t first, int64_t heads) const {
  const auto [queries, keys] = longest_of(sequences);
  const Tensor factors =
      at::zeros({static_cast<int64_t>(sequences.size()), heads, queries, keys}, inputs_.q.options().dtype(at::kFloat));
  for (size_t i = 0; i < sequences.size(); ++i) {
    const Sequence& s = sequences[i];
    const Tensor kept = kept_of_sequence(inputs_, s.number).narrow(0, first, heads).narrow(2, 0, s.keys());
    factors[static_cast<int64_t>(i)].narrow(1, 0, s.queries()).narrow(2, 0, s.keys()).copy_(kept);
  }
  return factors.mul_(1 / (1 - problem_.dropout.p)).flatten(0, 1);
}

ScoreOptions Emulation::options_of(const std::vector<Sequence>& sequences, const KeyHeads& part) const {
  ScoreOptions options;
  options.softcap = problem_.softcap;
  const int64_t first = part.first * problem_.group(), heads = part.count * problem_.group();
  if (problem_.dropout.p != 0) options.factors = factors_of(sequences, first, heads);
  if (problem_.sink) options.sinks = inputs_.sink.detach().narrow(0, first, heads).view({1, -1, 1, 1});
  if (!problem_.alibi) return options;
  std::vector<double> slopes;
  for (int64_t head = first + 1; head <= first + heads; ++head)
    slopes.push_back(std::pow(2.0, -8.0 * static_cast<double>(head) / static_cast<double>(problem_.hq)));
  options.slopes = at::tensor(slopes, at::kFloat).view({1, -1, 1, 1}).to(inputs_.q.device());
  std::vector<int64_t> offsets;
  for (const Sequence& s : sequences) offsets.push_back(problem_.align == Align::bottom_right ? s.real_keys - s.queries() : 0);
  options.offsets = to_tensor(offsets, inputs_.q.device()).view({-1, 1, 1, 1});
  return options;
}

void Emulation::emulate(const std::vector<Sequence>& sequences, const KeyHeads& part) const {
  const auto count = static_cast<int64_t>(sequences.size());
  const auto [queries, keys] = longest_of(sequences);
  PlacesOnHost queries_on_host, read_on_host, real_on_host;
  for (int64_t n = 0; n < count; ++n) {
    const Sequence& s = sequences[n];
    const auto [begin, end] = s.keys_read();
    for (int64_t i = 0; i < s.queries(); ++i) queries_on_host.add(s.q_rows[i], n * queries + i);
    for (int64_t j = begin; j < end; ++j) read_on_host.add(s.k_rows[j], n * keys + j);
    for (int64_t j = 0; j < s.real_keys; ++j) real_on_host.add(s.k_rows[j], n * keys + j);
  }
  const c10::Device device = inputs_.q.device();
  const Places all_queries = queries_on_host.to(device), keys_read = read_on_host.to(device), real_keys = real_on_host.to(device);
  const ScoreOptions options = options_of(sequences, part);
  Batch batch(arithmetic_, options, sequences, gather(inputs_.q, part, all_queries, count, queries),
              gather(inputs_.k, part, keys_read, count, keys), gather(inputs_.v, part, keys_read, count, keys),
              gather(inputs_.dout, part, all_queries, count, queries));
  batch.run();
  const auto by_head = [&](const Tensor& t) { return t.unflatten(0, {count, -1}); };
  scatter(o_, part, by_head(batch.O), all_queries);
  scatter(lse_, part, by_head(batch.lse), all_queries);
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
  return {laid_out(o_, inputs_.q),  laid_out(lse_, inputs_.q).squeeze(-1),
          laid_out(dq_, inputs_.q), laid_out(dk_, inputs_.k),
          laid_out(dv_, inputs_.k), inputs_.kept};
}

}  // namespace

Outputs emulate(const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row) {
  const at::NoGradGuard no_grad;
  const at::NoTF32Guard no_tf32;
  return Emulation(c, inputs, profile, empty_row).outputs();
}

}  // namespace attnbench
