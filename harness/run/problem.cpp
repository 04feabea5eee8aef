#include "harness/run/problem.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "harness/run/draws.hpp"
#include "harness/run/names.hpp"

namespace attnbench {
namespace {

/// Which random numbers a draw belongs to: draws of different streams are independent.
enum class Stream : uint64_t { query_lengths = 1, key_lengths = 2, positions = 3 };

/// A whole number in [0, count), a function of the counters alone.
uint64_t draw_below(uint64_t count, uint64_t seed, Stream stream, uint64_t row, uint64_t index) {
  const uint64_t bits = mix(mix(mix(mix(seed) ^ static_cast<uint64_t>(stream)) ^ row) ^ index);
  return scaled_below(count, bits);
}

std::vector<int64_t> lengths_from(const LengthSpec& spec, int64_t count, int64_t equal_length, uint64_t seed, Stream stream) {
  if (const auto* list = std::get_if<std::vector<int64_t>>(&spec)) return *list;
  std::vector<int64_t> lengths(count, equal_length);
  if (const auto* range = std::get_if<UniformLengths>(&spec))
    for (int64_t n = 0; n < count; ++n)
      lengths[n] = range->low + static_cast<int64_t>(draw_below(range->high - range->low + 1, seed, stream, n, 0));
  return lengths;
}

int64_t longest(const std::vector<int64_t>& lengths) {
  return lengths.empty() ? 0 : *std::ranges::max_element(lengths);
}
int64_t total(const std::vector<int64_t>& lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

}  // namespace

double Problem::softmax_scale() const {
  return scale ? *scale : 1.0 / std::sqrt(static_cast<double>(d));
}
bool Problem::uses_alignment() const {
  return mask == Mask::causal || window.has_value() || alibi;
}

int64_t SequenceLengths::max_q() const {
  return longest(q);
}
int64_t SequenceLengths::max_k() const {
  return longest(k);
}
int64_t SequenceLengths::total_q() const {
  return total(q);
}
int64_t SequenceLengths::total_k() const {
  return total(k);
}

int64_t pitch_of(Layout layout, Pad pad, int64_t longest_length) {
  if (layout == Layout::packed) return 0;
  if (pad != Pad::holes) return longest_length;
  return longest_length + std::max<int64_t>(1, longest_length / 4);
}

SequenceLengths sequence_lengths(const Problem& problem, uint64_t seed) {
  SequenceLengths lengths;
  lengths.q = lengths_from(problem.lens, problem.b, problem.lq, seed, Stream::query_lengths);
  const bool keys_follow_queries =
      std::holds_alternative<std::monostate>(problem.klens) && !std::holds_alternative<std::monostate>(problem.lens);
  lengths.k = keys_follow_queries ? lengths.q : lengths_from(problem.klens, problem.b, problem.lk, seed, Stream::key_lengths);
  lengths.q_pitch = pitch_of(problem.layout, problem.pad, lengths.max_q());
  lengths.k_pitch = pitch_of(problem.layout, problem.pad, lengths.max_k());
  return lengths;
}

std::vector<int64_t> token_positions(Pad pad, int64_t length, int64_t pitch, int64_t sequence, uint64_t seed) {
  std::vector<int64_t> positions;
  positions.reserve(length);
  if (pad != Pad::holes) {
    const int64_t first = pad == Pad::left ? pitch - length : 0;
    for (int64_t token = 0; token < length; ++token) positions.push_back(first + token);
    return positions;
  }
  // Selection sampling: a position is taken with probability (tokens still to place) / (positions still to come), so
  // every choice of `length` positions is equally likely and exactly `length` are taken.
  for (int64_t position = 0; position < pitch; ++position) {
    const int64_t to_place = length - static_cast<int64_t>(positions.size());
    const uint64_t ticket = draw_below(pitch - position, seed, Stream::positions, sequence, position);
    if (static_cast<int64_t>(ticket) < to_place) positions.push_back(position);
  }
  return positions;
}

std::string_view name_of(Dtype value) {
  return find_name(value);
}
std::string_view name_of(Mask value) {
  return find_name(value);
}
std::string_view name_of(Align value) {
  return find_name(value);
}
std::string_view name_of(Layout value) {
  return find_name(value);
}
std::string_view name_of(Pad value) {
  return find_name(value);
}
std::string_view name_of(Pass value) {
  return find_name(value);
}
int64_t bytes_of(Dtype dtype) {
  return dtype == Dtype::fp32 ? 4 : 2;
}

}  // namespace attnbench
