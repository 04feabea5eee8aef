// What one attention case computes: shape, dtype, mask, layout. Plain data, no LibTorch.
//
// Semantics, once for the whole harness. Sequence n has lq query tokens and lk key tokens. With offset = lk - lq
// (bottom_right) or 0 (top_left), query i sees key j, both counted in real tokens, if
//   mask=causal:        j <= i + offset
//   window=left:right:  i + offset - left <= j <= i + offset + right   (inclusive; a negative bound is unlimited)
// Padding never changes what a token sees: i and j are ranks among the real tokens of the row, not padded positions.
// S = scale * Q K^T, P = softmax(S) over the visible keys, O = P V, LSE = ln sum exp S (natural log of scaled scores).
// Query head h reads key head h / (hq / hkv).
// Options, in this order, of the scores that a query sees; what a query without keys returns they do not change:
//   softcap=c:  S becomes c tanh(S / c)
//   alibi:      S_ij -= 2^(-8 (h + 1) / hq) |i + offset - j| for query head h
//   sink:       a score of the query head's own joins the softmax, with no key behind it: P sums to less than 1, LSE has it
// dropout=p:seed multiplies each P_ij by kept_ij / (1 - p), after the softmax: LSE is that without. kept_ij is 1 with probability
// 1 - p, else 0, drawn by the kernel with a generator of its own, which every call seeds anew; queries that see no key have it
// too. The kernel hands out which it kept (Outputs in attention/inputs.hpp), and is judged by that mask:
//   O = (P o M) V,  dV = (P o M)^T dO,  dP = M o (dO V^T),  dS = P o (dP - D),  D = rowsum(dO o O),  M = kept / (1 - p)
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace attnbench {

enum class Dtype { bf16, fp16, fp32 };
enum class Mask { none, causal };
enum class Align { bottom_right, top_left };
enum class Layout { packed, padded };
enum class Pad { right, left, holes };
enum class Pass { forward, backward };

/// Inclusive bounds in keys around the diagonal; negative = unlimited.
struct SlidingWindow {
  int64_t left = -1, right = -1;
  bool operator==(const SlidingWindow&) const = default;
};

struct Dropout {
  double p = 0;  ///< what share is dropped, 0 <= p < 1; 0: off
  uint64_t seed = 0;
  bool operator==(const Dropout&) const = default;
};

/// Lengths drawn uniformly from [low, high], by the case's seed.
struct UniformLengths {
  int64_t low = 0, high = 0;
  bool operator==(const UniformLengths&) const = default;
};
/// Unset (equal lengths lq, lk), an explicit list, or drawn.
using LengthSpec = std::variant<std::monostate, std::vector<int64_t>, UniformLengths>;

struct Problem {
  int64_t b = 1;           ///< sequences
  int64_t hq = 1;          ///< query heads
  int64_t hkv = 1;         ///< key/value heads; divides hq
  int64_t d = 0;           ///< head dim of Q and K
  int64_t dv = 0;          ///< head dim of V and O
  int64_t lq = 0, lk = 0;  ///< equal lengths, used when lens is unset
  LengthSpec lens, klens;  ///< per-sequence lengths of queries and of keys (klens unset: as lens)
  Dtype dtype = Dtype::bf16;
  Mask mask = Mask::none;
  Align align = Align::bottom_right;
  std::optional<SlidingWindow> window;
  Layout layout = Layout::packed;
  Pad pad = Pad::right;         ///< where padding goes; meaningful for Layout::padded only
  int64_t tail = 0;             ///< rows behind the last sequence of packed queries and of packed keys, which are nobody's
  std::optional<double> scale;  ///< unset: 1/sqrt(d)
  double softcap = 0;           ///< 0: off
  bool alibi = false;
  bool sink = false;
  Dropout dropout;
  bool operator==(const Problem&) const = default;

  bool has_score_options() const { return softcap != 0 || alibi || sink; }
  int64_t group() const { return hq / hkv; }  ///< query heads per key head
  double softmax_scale() const;
  bool uses_alignment() const;  ///< false: `align` has no effect (no causal mask, window or ALiBi)
};

/// Real (unpadded) lengths of every sequence, and the padded row lengths.
/// packed: pitch is 0. padded: the pitch is the longest length; with Pad::holes a quarter more, and at least one more,
/// so that there are holes even in the longest row.
struct SequenceLengths {
  std::vector<int64_t> q, k;
  int64_t q_pitch = 0, k_pitch = 0;
  int64_t max_q() const;
  int64_t max_k() const;
  int64_t total_q() const;
  int64_t total_k() const;
};
SequenceLengths sequence_lengths(const Problem& problem, uint64_t seed);

/// Positions of a row whose longest sequence has `longest_length` tokens; 0 for Layout::packed.
int64_t pitch_of(Layout layout, Pad pad, int64_t longest_length);

/// Positions, ascending, of the `length` real tokens of row `sequence` within a padded row of `pitch` positions.
/// holes: a seeded choice. Queries and keys of equal length and pitch get equal positions (self-attention shares a mask).
std::vector<int64_t> token_positions(Pad pad, int64_t length, int64_t pitch, int64_t sequence, uint64_t seed);

/// Names as the case grammar writes them ("bf16", "bottom_right", …).
std::string_view name_of(Dtype);
std::string_view name_of(Mask);
std::string_view name_of(Align);
std::string_view name_of(Layout);
std::string_view name_of(Pad);
std::string_view name_of(Pass);
int64_t bytes_of(Dtype);

}  // namespace attnbench
