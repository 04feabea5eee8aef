// Random numbers of a layer's tensors: the same bits for any compiler, thread count and device.
#pragma once

#include <cstdint>

namespace attnbench {

/// Streams of random numbers: the second word of the counter, apart from those of `attention`.
enum class LayerStream : uint32_t {
  hidden = 64,
  wq,
  wk,
  wv,
  wo,
  past_k,
  past_v,
  dout,
  norm,
  q_norm,
  k_norm,
  lora_qa,
  lora_qb,
  lora_va,
  lora_vb
};

/// count standard normal numbers (harness/attention/normal.hpp), counted by their place.
void draw_normal(LayerStream stream, uint64_t seed, float* to, int64_t count);

}  // namespace attnbench
