// The tensors of one case, in the case's layout.
//
// Values come from Philox4x32-10, counter = (element, tensor, 0, 0), key = seed: element by element, so they are
// bit-identical for any thread count and on any device. `element` counts real tokens: (token, head, channel), the
// token's rank among all real tokens of the case; so packed and padded forms of one problem hold equal numbers.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "harness/run/declaration.hpp"

namespace attnbench {

/// Layout::packed: q, dout [total_q, hq, d|dv]; k [total_k, hkv, d], v [total_k, hkv, dv].
/// Layout::padded: q, dout [b, q_pitch, hq, d|dv]; k, v [b, k_pitch, hkv, d|dv]; dout is 0 on padded rows.
/// tail rows follow the last sequence of q, k, v and dout where the case has them.
/// Strides as the case says; the values do not depend on them (stride0 apart: k and v repeat one head).
struct Inputs {
  at::Tensor q, k, v, dout;
  SequenceLengths lengths;
  at::Tensor sink;            ///< float32 [hq]: a score of each query head; of cases with sinks only
  at::Tensor cu_q, cu_k;      ///< int32 [b + 1], prefix sums of the lengths (both layouts)
  at::Tensor q_mask, k_mask;  ///< bool [b, pitch], true = real token; padded only
  /// Storage row (within [0, rows)) of every real token in order; packed: 0, 1, 2, …; padded: sequence * pitch + position.
  std::vector<int64_t> q_rows, k_rows;
  double scale = 0;
  /// As in Outputs, of the kernel that is judged: what oracles and emulator replay. Nobody else has it, least of all a backend.
  at::Tensor kept;

  /// Allocated rows: packed: the total tokens and the tail; padded: b * pitch.
  int64_t q_storage_rows() const;
  int64_t k_storage_rows() const;
};

/// Draws the inputs on the device, on LibTorch's current stream if it is a GPU. poison: what the tokens hold that nobody may
/// read: padded ones of q, k and v, those of the tail (of dout too), and the keys and values that the mask hides from every query
/// of their sequence (finite: these hold what was drawn for them).
Inputs make_inputs(const Case& c, Conventions::Poison poison, const Device& device = {"cpu", 0, {}, ""});

/// Gives the tokens that nobody may read what they hold with this poison; the others are left as they are.
void repoison(const Case& c, Conventions::Poison poison, const Inputs& inputs);

/// cu_seqlens of `lengths`: int32 [lengths + 1], from 0, on the CPU. Throws std::invalid_argument when the total, of `what`
/// tokens, does not fit the int32 that packed operations read.
at::Tensor prefix_sums(const std::vector<int64_t>& lengths, const char* what);

/// Some token is there that nobody may read, so that the inputs depend on the poison.
bool holds_poison(const Case& c);

/// What a backend computed, in the case's layout; undefined tensors were not computed.
/// o, dq as q (o with dv channels); dk, dv as k, v; lse float32, as o without the channel: [total_q, hq] or [b, q_pitch, hq].
/// kept, of a forward with dropout: bool, true where the element of P was kept. As o, with the keys in the place of the channels:
/// packed [total_q, hq, longest keys], by the number of the key in its sequence; padded [b, q_pitch, hq, k_pitch], by where it is
/// stored. What a query does not read has no meaning. It says what the call did, and the backward of a forward keeps what it
/// kept.
struct Outputs {
  at::Tensor o, lse, dq, dk, dv, kept = {};
};

}  // namespace attnbench
