// What each `fill=` and `dout=` draws, as a step on rows (row_team.hpp): the same bits on a CPU and on a GPU.
//
// q, k, v ("N": independent standard normal numbers):
//   normal            N
//   peaked            q = 4 N: nearly one-hot probabilities
//   shifted_negative  channel 0 of q and k shifted apart so that at the default scale the LSE is about -200
//   deep_negative     channel 0 is 256 in q and -256 in k: scores about -65536, before they are scaled, and no maximum above that
//   ramp              channel 0: q = N + 6, k = N + 10 j / lk for key j: the running maximum keeps growing
//   mean_offset       k = N + 2, v = N + 1.5: cancellation in dS, rounding errors that share a sign
//   row_scale         rows of q and v times a power of two drawn from 2^-2 .. 2^2
//   sparse_int        0 with probability 4/5, else an integer of -2 .. 2: ties, exact products
//   unit              uniform on [0, 1): sums that only grow
//   ones_v            N, and v = 1: then O is exactly 1, dQ and dK are 0
// Sinks, one for each query head: N.
// dO: normal N; one_hot: a single 1 in each row, at a drawn channel; zeros; ones.
#pragma once

#include <cstdint>

#include "harness/run/case.hpp"

namespace attnbench {

/// Streams of random numbers; a stream is the second word of the counter.
enum class Stream : uint32_t { q, k, v, dout, q_garbage, k_garbage, v_garbage, sink };

/// |channel 0| of q and k in deep_negative.
inline constexpr float kDeepNegative = 256;

/// What a storage row of a tensor is to hold; before: what it holds already.
enum class Holds { values, garbage, zeros, nan, before };

/// Whose a storage row is: a token's; a token's whose key no query sees; nobody's.
enum class RowOf : int64_t { token, unseen, nobody };

/// A storage row of queries or keys. It is a token's of its sequence's `length`; `number` counts tokens, or where it is nobody's,
/// storage rows. Elements are drawn by (number * heads + head) * channels + channel.
struct StorageRow {
  RowOf of = RowOf::token;
  int64_t number = 0, position = 0, length = 0;
};

/// A tensor [sequences, pitch, heads, channels] that is to be drawn.
struct Drawing {
  Stream values, garbage;
  Fill fill;
  Dout dout;
  uint64_t seed;
  Holds seen, unseen, nobody;  ///< tokens, those whose key no query sees, and nobody's rows
  Dtype dtype;
  void* data;                                        ///< the first element
  int64_t pitch;                                     ///< storage rows of a sequence
  int64_t sequence_stride, row_stride, head_stride;  ///< in elements
  int64_t heads, channels;
  int64_t stored_heads;  ///< 1 where all of them share one, else heads
};

/// Draws all of its storage rows, `count` of them, which lie on the device of the data.
void draw_rows(bool on_gpu, const Drawing& drawing, const StorageRow* rows, int64_t count);

}  // namespace attnbench
