// What each `fill=` and `dout=` draws, one (token, head) row at a time.
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

/// One row: `channels` values of one (token, head). `token` and `head` number it, `position` is the token's rank among the
/// `length` tokens of its sequence.
struct RowIndex {
  int64_t token = 0, head = 0, position = 0, length = 0;
};

class RowDrawer {
 public:
  /// `heads` and `channels` of the tensor give every element its number: (token * heads + head) * channels + channel.
  RowDrawer(Stream stream, const Case& c, int64_t heads, int64_t channels)
      : stream_(stream), fill_(c.fill), dout_(c.dout), seed_(c.seed), heads_(heads), channels_(channels) {}

  int64_t channels() const { return channels_; }

  /// Writes `channels` values, not yet rounded to the case's dtype.
  void draw(const RowIndex& index, float* row) const;

 private:
  void draw_dout(const RowIndex& index, float* row) const;
  void draw_qkv(const RowIndex& index, float* row) const;
  void normal(const RowIndex& index, float* row) const;
  void unit(const RowIndex& index, float* row) const;
  void sparse_int(const RowIndex& index, float* row) const;
  uint64_t first_element(const RowIndex& index) const;
  uint32_t row_word(const RowIndex& index) const;

  Stream stream_;
  Fill fill_;
  Dout dout_;
  uint64_t seed_;
  int64_t heads_, channels_;
};

}  // namespace attnbench
