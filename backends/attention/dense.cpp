#include "backends/attention/dense.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

namespace attnbench {
namespace {

bool all_equal(const std::vector<int64_t>& lengths) {
  return std::ranges::all_of(lengths, [&](int64_t length) { return length == lengths.front(); });
}

/// Keys [first, last) that query i of a sequence sees.
struct KeyRange {
  int64_t first = 0, last = 0;
};

KeyRange keys_of_query(const Problem& problem, int64_t i, int64_t lq, int64_t lk) {
  const int64_t diagonal = i + (problem.align == Align::bottom_right ? lk - lq : 0);
  KeyRange range{0, lk};
  if (problem.mask == Mask::causal) range.last = std::min(range.last, diagonal + 1);
  if (problem.window && problem.window->right >= 0) range.last = std::min(range.last, diagonal + problem.window->right + 1);
  if (problem.window && problem.window->left >= 0) range.first = std::max(range.first, diagonal - problem.window->left);
  range.last = std::max(range.last, range.first);
  return range;
}

bool has_mask(const Problem& problem) {
  return problem.mask == Mask::causal || problem.window.has_value();
}

/// The operation's flag says exactly which keys are hidden.
bool flag_suffices(const Problem& problem, Triangle triangle, int64_t lq, int64_t lk) {
  if (problem.mask != Mask::causal || problem.window || triangle == Triangle::mask) return false;
  const Align of_flag = triangle == Triangle::top_left_flag ? Align::top_left : Align::bottom_right;
  return problem.align == of_flag || lq == lk;
}

at::Tensor packed_mask(const Problem& problem, int64_t lq, int64_t lk) {
  at::Tensor visible = at::zeros({1, 1, lq, lk}, at::kBool);
  bool* row = visible.data_ptr<bool>();
  for (int64_t i = 0; i < lq; i++, row += lk) {
    const KeyRange range = keys_of_query(problem, i, lq, lk);
    std::fill(row + std::min(range.first, lk), row + std::min(range.last, lk), true);
  }
  return visible;
}

/// Zeros [b, 1, q_pitch, k_pitch], in which set(i, lq, lk, place) writes to place(j), of query i and key j of a sequence, as it
/// likes.
template <typename T, typename Set>
at::Tensor padded_scores(const Inputs& inputs, at::ScalarType dtype, const Set& set) {
  const SequenceLengths& lengths = inputs.lengths;
  const auto b = static_cast<int64_t>(lengths.q.size());
  at::Tensor scores = at::zeros({b, 1, lengths.q_pitch, lengths.k_pitch}, dtype);
  T* data = scores.data_ptr<T>();
  const int64_t* q_row = inputs.q_rows.data();
  const int64_t* k_row = inputs.k_rows.data();
  for (int64_t n = 0; n < b; n++) {
    const int64_t lq = lengths.q[static_cast<size_t>(n)], lk = lengths.k[static_cast<size_t>(n)];
    for (int64_t i = 0; i < lq; i++) {
      T* row = data + q_row[i] * lengths.k_pitch;
      set(i, lq, lk, [&](int64_t j) -> T& { return row[k_row[j] - n * lengths.k_pitch]; });
    }
    q_row += lq;
    k_row += lk;
  }
  return scores;
}

at::Tensor padded_mask(const Problem& problem, const Inputs& inputs) {
  return padded_scores<bool>(inputs, at::kBool, [&](int64_t i, int64_t lq, int64_t lk, const auto& place) {
    const KeyRange range = keys_of_query(problem, i, lq, lk);
    for (int64_t j = range.first; j < std::min(range.last, lk); j++) place(j) = true;
  });
}

int64_t offset_of(const Problem& problem, int64_t lq, int64_t lk) {
  return problem.align == Align::bottom_right ? lk - lq : 0;
}

/// Tokens from the diagonal, float32 [1, 1, lq, lk].
at::Tensor packed_distance(const Problem& problem, int64_t lq, int64_t lk) {
  const at::Tensor diagonal = at::arange(lq, at::kFloat).unsqueeze(1) + offset_of(problem, lq, lk);
  return (diagonal - at::arange(lk, at::kFloat)).abs_().view({1, 1, lq, lk});
}

/// The same of rows whose real tokens lie anywhere, float32 [b, 1, q_pitch, k_pitch].
at::Tensor padded_distance(const Problem& problem, const Inputs& inputs) {
  return padded_scores<float>(inputs, at::kFloat, [&](int64_t i, int64_t lq, int64_t lk, const auto& place) {
    for (int64_t j = 0; j < lk; j++) place(j) = static_cast<float>(std::abs(i + offset_of(problem, lq, lk) - j));
  });
}

at::Tensor additive(const at::Tensor& visible, const at::Tensor& q, double hidden) {
  return at::zeros(visible.sizes(), q.options()).masked_fill_(visible.to(q.device()).logical_not(), hidden);
}

/// Rows [first, first + b * length) of packed [tokens, heads, channels] as [b, heads, length, channels].
at::Tensor packed_view(const at::Tensor& packed, int64_t first, int64_t b, int64_t length) {
  const int64_t token = packed.stride(0);
  return packed.as_strided({b, packed.size(1), length, packed.size(2)},
                           {length * token, packed.stride(1), token, packed.stride(2)}, packed.storage_offset() + first * token);
}

DenseCall packed_call(const Case& c, const Inputs& inputs, int64_t b, int64_t first_q, int64_t lq, int64_t first_k, int64_t lk,
                      Triangle triangle, double hidden) {
  DenseCall call;
  call.q = packed_view(inputs.q, first_q, b, lq);
  call.dout = packed_view(inputs.dout, first_q, b, lq);
  call.k = packed_view(inputs.k, first_k, b, lk);
  call.v = packed_view(inputs.v, first_k, b, lk);
  if (c.problem.alibi) call.distance = packed_distance(c.problem, lq, lk).to(call.q.device());
  call.is_causal = flag_suffices(c.problem, triangle, lq, lk);
  if (has_mask(c.problem) && !call.is_causal) call.mask = additive(packed_mask(c.problem, lq, lk), call.q, hidden);
  return call;
}

DenseCall padded_call(const Case& c, const Inputs& inputs, Triangle triangle, double hidden) {
  DenseCall call;
  call.q = inputs.q.transpose(1, 2);
  call.dout = inputs.dout.transpose(1, 2);
  call.k = inputs.k.transpose(1, 2);
  call.v = inputs.v.transpose(1, 2);
  if (c.problem.alibi) call.distance = padded_distance(c.problem, inputs).to(call.q.device());
  const SequenceLengths& lengths = inputs.lengths;
  const bool nothing_padded = lengths.total_q() == inputs.q_storage_rows() && lengths.total_k() == inputs.k_storage_rows();
  call.is_causal = nothing_padded && flag_suffices(c.problem, triangle, lengths.q_pitch, lengths.k_pitch);
  const bool needs_mask = !nothing_padded || has_mask(c.problem);
  if (needs_mask && !call.is_causal) call.mask = additive(padded_mask(c.problem, inputs), call.q, hidden);
  return call;
}

}  // namespace

std::vector<DenseCall> dense_calls(const Case& c, const Inputs& inputs, Triangle triangle, double hidden) {
  if (c.problem.layout == Layout::padded) return {padded_call(c, inputs, triangle, hidden)};
  const SequenceLengths& lengths = inputs.lengths;
  const auto b = static_cast<int64_t>(lengths.q.size());
  if (all_equal(lengths.q) && all_equal(lengths.k)) {
    return {packed_call(c, inputs, b, 0, lengths.q.front(), 0, lengths.k.front(), triangle, hidden)};
  }
  std::vector<DenseCall> calls;
  int64_t first_q = 0, first_k = 0;
  for (size_t n = 0; n < lengths.q.size(); n++) {
    calls.push_back(packed_call(c, inputs, 1, first_q, lengths.q[n], first_k, lengths.k[n], triangle, hidden));
    first_q += lengths.q[n];
    first_k += lengths.k[n];
  }
  return calls;
}

at::Tensor join(const std::vector<at::Tensor>& parts, Layout layout) {
  if (layout == Layout::padded) return parts.front().transpose(1, 2);
  std::vector<at::Tensor> rows;
  for (const at::Tensor& part : parts) rows.push_back(part.transpose(1, 2).flatten(0, 1));
  return rows.size() == 1 ? rows.front() : at::cat(rows);
}

Outputs join_gradients(const std::vector<DenseGradients>& parts, Layout layout) {
  std::vector<at::Tensor> dq, dk, dv;
  for (const DenseGradients& part : parts) {
    dq.push_back(part.dq);
    dk.push_back(part.dk);
    dv.push_back(part.dv);
  }
  Outputs outputs;
  outputs.dq = join(dq, layout);
  outputs.dk = join(dk, layout);
  outputs.dv = join(dv, layout);
  return outputs;
}

DenseGradients zero_gradients(const DenseCall& call) {
  return {at::zeros_like(call.q), at::zeros_like(call.k), at::zeros_like(call.v)};
}

std::optional<at::Tensor> optional_mask(const DenseCall& call) {
  return call.mask.defined() ? std::optional(call.mask) : std::nullopt;
}

Capabilities broad_capabilities(std::vector<std::string> devices) {
  Capabilities can;
  can.devices = std::move(devices);
  can.dtypes = {Dtype::bf16, Dtype::fp16, Dtype::fp32};
  can.max_head_dim = std::numeric_limits<int32_t>::max();
  can.dv_differs = true;
  can.passes = {Pass::forward, Pass::backward};
  can.layouts = {Layout::packed, Layout::padded};
  can.masks = {Mask::none, Mask::causal};
  can.aligns = {Align::bottom_right, Align::top_left};
  can.window = true;
  can.strides = {Strides::contiguous,      Strides::transposed, Strides::v_transposed,
                 Strides::dout_transposed, Strides::stride0,    Strides::unaligned};
  can.returns_lse = false;
  return can;
}

ScoreElements score_elements(const std::vector<DenseCall>& calls) {
  ScoreElements elements;
  for (const DenseCall& call : calls) {
    const int64_t scores = call.q.size(0) * call.q.size(1) * call.q.size(2) * call.k.size(2);
    elements.largest = std::max(elements.largest, scores);
    elements.all += scores;
  }
  return elements;
}

int64_t output_bytes(const Inputs& inputs, Pass pass, bool with_lse) {
  const int64_t size = inputs.q.element_size();
  int64_t bytes = inputs.dout.numel() * size;
  if (with_lse && inputs.dout.size(-1) > 0) bytes += inputs.dout.numel() / inputs.dout.size(-1) * 4;
  if (pass == Pass::backward) bytes += (inputs.q.numel() + inputs.k.numel() + inputs.v.numel()) * size;
  return bytes;
}

}  // namespace attnbench
