#include "backends/llama/packed_attention.hpp"

#include "backends/llama/layer.hpp"

namespace attnbench {

at::Tensor attend_padded(const Backend& attention, const PaddedCall& call) {
  const int64_t b = call.q.size(0), s = call.q.size(1), skv = call.k.size(1);
  AttentionCall packed;
  packed.causal = call.causal;
  packed.align = call.align;
  if (!call.mask.defined()) {
    packed.q = call.q.flatten(0, 1);
    packed.k = call.k.flatten(0, 1);
    packed.v = call.v.flatten(0, 1);
    packed.q_lengths.assign(static_cast<size_t>(b), s);
    packed.k_lengths.assign(static_cast<size_t>(b), skv);
    return attend(attention, packed).unflatten(0, {b, s});
  }
  const Unpadding queries = unpadding_of(call.mask.narrow(1, skv - s, s)), keys = unpadding_of(call.mask);
  packed.q = unpad(call.q, queries);
  packed.k = unpad(call.k, keys);
  packed.v = unpad(call.v, keys);
  packed.q_lengths = queries.lengths;
  packed.k_lengths = keys.lengths;
  return pad(attend(attention, packed), queries, b, s);
}

}  // namespace attnbench
