#include "harness/attention/emulator_batch.hpp"

#include <algorithm>

#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/tokens.hpp"

namespace attnbench::emulation {
namespace {

/// Elements of a matrix of scores in a block: on a CPU a few of them stay near the core, on a GPU they keep it busy.
constexpr int64_t kCpuBlockElements = 1 << 17, kGpuBlockElements = 1 << 24;
constexpr int64_t kLeastRows = 16;  ///< fewer would leave the products narrow

/// Places as int64s.
template <typename Place>
Tensor upload(const std::vector<Place>& places, c10::Device device) {
  static_assert(sizeof(Place) % sizeof(int64_t) == 0);
  const auto* numbers = reinterpret_cast<const int64_t*>(places.data());
  return to_tensor(std::vector<int64_t>(numbers, numbers + places.size() * (sizeof(Place) / sizeof(int64_t))), device);
}

float* floats_of(const Tensor& t) {
  return t.defined() ? t.mutable_data_ptr<float>() : nullptr;
}

/// Where values of the case's dtype go beside the floats; null where products read those.
void* narrow_of(const Tensor& t) {
  return t.defined() ? t.mutable_data_ptr() : nullptr;
}

Operand operand_of(const Tensor& t) {
  return t.scalar_type() == at::kFloat ? Operand{.wide = floats_of(t)} : Operand{.narrow = t.mutable_data_ptr()};
}

/// Accumulated in fp32: by the tensor cores where both operands are of a low-precision dtype.
Tensor product(const Tensor& x, const Tensor& y) {
  if (x.scalar_type() != at::kFloat && y.scalar_type() != at::kFloat) return at::bmm(x, y, at::kFloat);
  return at::bmm(x.to(at::kFloat), y.to(at::kFloat));
}

}  // namespace

void Sequence::find_reads(const Problem& problem, Conventions::EmptyRow empty_row) {
  reads.resize(queries());
  const int64_t first = problem.align == Align::bottom_right ? real_keys - queries() : 0;
  for (int64_t i = 0; i < queries(); ++i) {
    QueryPlace& r = reads[i];
    r.row = q_rows[i];
    r.diagonal = first + i;
    int64_t begin = 0, end = real_keys;
    if (problem.mask == Mask::causal) end = std::min(end, r.diagonal + 1);
    if (problem.window && problem.window->left >= 0) begin = std::max(begin, r.diagonal - problem.window->left);
    if (problem.window && problem.window->right >= 0) end = std::min(end, r.diagonal + problem.window->right + 1);
    r.filled = begin >= end && empty_row != Conventions::EmptyRow::zero;
    if (begin < end)
      r.begin = begin, r.end = end;
    else if (r.filled)
      r.end = keys();
  }
}

std::pair<int64_t, int64_t> Sequence::keys_read() const {
  int64_t begin = keys(), end = 0;
  for (const QueryPlace& r : reads) {
    if (r.begin == r.end) continue;
    begin = std::min(begin, r.begin);
    end = std::max(end, r.end);
  }
  return {begin, std::max(begin, end)};
}

Places::Places(const std::vector<Sequence>& all, c10::Device device) : sequences(static_cast<int64_t>(all.size())) {
  for (const Sequence& s : all) queries = std::max(queries, s.queries()), keys = std::max(keys, s.keys());
  keys = tiles_of(keys) * kTile;
  around.assign(queries, {keys, 0});
  std::vector<QueryPlace> q_places(sequences * queries);
  std::vector<KeyPlace> k_places(sequences * keys);
  for (int64_t n = 0; n < sequences; ++n) {
    const Sequence& s = all[n];
    for (int64_t i = 0; i < s.queries(); ++i) {
      const QueryPlace& r = s.reads[i];
      q_places[n * queries + i] = r;
      if (r.begin < r.end) around[i] = {std::min(around[i].first, r.begin), std::max(around[i].second, r.end)};
    }
    const auto [begin, end] = s.keys_read();
    for (int64_t j = 0; j < s.keys(); ++j)
      k_places[n * keys + j] = {
          .row = s.k_rows[j], .column = s.k_rows[j] - s.first_column, .read = j >= begin && j < end, .real = j < s.real_keys};
  }
  of_queries = upload(q_places, device), of_keys = upload(k_places, device);
}

Batch::Batch(const Setting& setting, const Places& places, const CaseTensors& tensors, const at::TensorOptions& operand)
    : places_(places), tensors_(tensors), operand_(operand), wide_(operand.dtype(at::kFloat)), s_(setting) {
  s_.sequences = places.sequences, s_.queries = places.queries, s_.keys = places.keys;
  s_.of_queries = reinterpret_cast<const QueryPlace*>(places.of_queries.const_data_ptr());
  s_.of_keys = reinterpret_cast<const KeyPlace*>(places.of_keys.const_data_ptr());
  Q_ = gathered(tensors.q, s_.d, /*of_keys=*/false), G_ = gathered(tensors.dout, s_.dv, /*of_keys=*/false);
  K_ = gathered(tensors.k, s_.d, /*of_keys=*/true), V_ = gathered(tensors.v, s_.dv, /*of_keys=*/true);
}

Tensor Batch::gathered(const CaseTensor& from, int64_t channels, bool of_keys) const {
  const Tensor batch = at::empty({heads(), of_keys ? s_.keys : s_.queries, channels}, operand_);
  (of_keys ? gather_keys : gather_queries)(s_, from, channels, operand_of(batch));
  return batch;
}

/// With the tiles around all keys that its rows read.
BlockRows Batch::block(int64_t first, int64_t rows) const {
  int64_t begin = s_.keys, end = 0;
  for (int64_t i = first; i < first + rows; ++i) {
    begin = std::min(begin, places_.around[i].first / kTile * kTile);
    end = std::max(end, tiles_of(places_.around[i].second) * kTile);
  }
  return {.s = s_, .first = first, .rows = rows, .key = begin, .keys = std::max<int64_t>(end - begin, 0)};
}

Tensor Batch::matrix(const BlockRows& b, const at::TensorOptions& options) const {
  return at::empty({heads(), b.rows, b.keys}, options);
}

/// One block of rows after the other: a few matrices of so many scores are the memory it takes.
void Batch::run() {
  const int64_t elements = s_.on_gpu ? kGpuBlockElements : kCpuBlockElements;
  const int64_t step = std::max(elements / (heads() * s_.keys), kLeastRows);
  for (int64_t first = 0; first < s_.queries; first += step) {
    const BlockRows b = block(first, std::min(step, s_.queries - first));
    if (b.keys > 0) compute(b);
  }
  if (!dK_.defined()) return;  // no query reads a key
  key_gradient_rows(s_, floats_of(dK_), s_.d, /*scaled=*/true, tensors_.dk);
  key_gradient_rows(s_, floats_of(dV_), s_.dv, /*scaled=*/false, tensors_.dv);
}

void Batch::compute(const BlockRows& b) {
  const Rounding& r = s_.rounding;
  const bool narrow = operand_.dtype() != at::kFloat;
  const Tensor numbers = at::empty({2 + tiles_of(b.keys), heads() * b.rows}, wide_);
  float *l = floats_of(numbers), *D = l + heads() * b.rows;
  const Tensor P = product(of_rows(Q_, b), of_keys(K_, b).mT()), W = matrix(b, wide_);
  Tensor tanh, narrow_W;
  if (s_.softcap != 0) tanh = matrix(b, wide_);
  if (r.p_normalised && narrow) narrow_W = matrix(b, operand_);
  softmax_rows(b, {.S = floats_of(P),
                   .tanh = floats_of(tanh),
                   .tile_maxima = D + heads() * b.rows,
                   .l = l,
                   .W = floats_of(W),
                   .narrow_W = narrow_of(narrow_W)});
  const Tensor O = product(narrow_W.defined() ? narrow_W : W, of_keys(V_, b));
  output_rows(b, {.O = floats_of(O), .l = l, .G = operand_of(G_), .D = D, .o = tensors_.o});
  add_gradients(b, P, {.P = floats_of(P), .tanh = floats_of(tanh), .D = D});
}

void Batch::add_gradients(const BlockRows& b, const Tensor& P, const OfGradient& known) {
  const Tensor G = of_rows(G_, b), dP = product(G, of_keys(V_, b).mT());
  OfGradient x = known;
  x.dP = floats_of(dP);
  Tensor left = P, dS = dP;
  if ((s_.rounding.ds || s_.rounding.scores) && operand_.dtype() != at::kFloat) {
    left = matrix(b, operand_), dS = matrix(b, operand_);
    x.narrow_P = narrow_of(left), x.narrow_dS = narrow_of(dS);
  }
  gradient_rows(b, x);
  query_gradient_rows(b, floats_of(product(dS, of_keys(K_, b))), tensors_.dq);
  add(dK_, b, product(dS.mT(), of_rows(Q_, b)));
  add(dV_, b, product(left.mT(), G));
}

void Batch::add(Tensor& sum, const BlockRows& b, const Tensor& product) const {
  if (!sum.defined() && b.keys == s_.keys) {
    sum = product;
    return;
  }
  if (!sum.defined()) sum = at::zeros({heads(), s_.keys, product.size(2)}, wide_);
  of_keys(sum, b).add_(product);
}

}  // namespace attnbench::emulation
