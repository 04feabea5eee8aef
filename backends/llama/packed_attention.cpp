#include "backends/llama/packed_attention.hpp"

#include <ATen/ops/stack.h>

namespace attnbench {

at::Tensor packed_attention(const Backend& attention, const Projected& x, const at::Tensor& mask, Align align) {
  const int64_t b = x.q.size(0), s = x.q.size(1);
  const at::Tensor qkv = at::stack({x.q, x.k, x.v}, 2);  // [b, s, 3, heads, d]
  const Unpadding real = mask.defined() ? unpadding_of(mask) : Unpadding{{}, std::vector<int64_t>(static_cast<size_t>(b), s)};
  const at::Tensor packed = mask.defined() ? unpad(qkv, real) : qkv.flatten(0, 1);
  AttentionCall call;
  call.q = packed.select(1, 0);
  call.k = packed.select(1, 1);
  call.v = packed.select(1, 2);
  call.q_lengths = call.k_lengths = real.lengths;
  call.align = align;
  const at::Tensor o = attend(attention, call);
  return mask.defined() ? pad(o, real, b, s) : o.unflatten(0, {b, s});
}

}  // namespace attnbench
