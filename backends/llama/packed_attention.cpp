#include "backends/llama/packed_attention.hpp"

#include <optional>
#include <vector>

#include <ATen/ops/stack.h>

#include "backends/llama/layer.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// [b, s, …] -> [tokens, …], without the padding where there is some.
Tensor rows_of(const Tensor& x, const std::optional<Unpadding>& real) {
  return real ? unpad(x, *real) : x.flatten(0, 1);
}

}  // namespace

Tensor attend_padded(const Backend& attention, const PaddedCall& call) {
  const int64_t b = call.q.size(0), s = call.q.size(1), skv = call.k.size(1);
  std::optional<Unpadding> queries, keys;
  if (call.mask.defined()) {
    queries = unpadding_of(call.mask.narrow(1, skv - s, s));
    keys = unpadding_of(call.mask);
  }
  std::vector<Tensor> qkv;
  if (call.stacked == Stacked::qkv) {
    qkv = rows_of(at::stack({call.q, call.k, call.v}, 2), keys).unbind(1);
  } else if (call.stacked == Stacked::kv) {
    qkv = rows_of(at::stack({call.k, call.v}, 2), keys).unbind(1);
    qkv.insert(qkv.begin(), rows_of(call.q, queries));
  } else {
    qkv = {rows_of(call.q, queries), rows_of(call.k, keys), rows_of(call.v, keys)};
  }
  AttentionCall packed;
  packed.q = qkv[0];
  packed.k = qkv[1];
  packed.v = qkv[2];
  packed.q_lengths = queries ? queries->lengths : std::vector<int64_t>(static_cast<size_t>(b), s);
  packed.k_lengths = keys ? keys->lengths : std::vector<int64_t>(static_cast<size_t>(b), skv);
  packed.causal = call.causal;
  packed.align = call.align;
  const Tensor o = attend(attention, packed);
  return queries ? pad(o, *queries, b, s) : o.unflatten(0, {b, s});
}

}  // namespace attnbench
