#include "harness/attention/oracle_torch_reads.hpp"

#include <algorithm>

#include "harness/attention/oracle_torch_rows.hpp"

namespace attnbench::torch_oracle {
namespace {

int64_t samples_of_row(const Stretch& s, int64_t query) {
  const int64_t keys = s.end - first_sample(s.begin, query);
  return s.empty || keys <= 0 ? 0 : (keys + kSampledKeys - 1) / kSampledKeys;
}

}  // namespace

int64_t diagonal_of(const Problem& problem, const SequenceOfHeads& sequence) {
  return problem.align == Align::top_left ? 0 : sequence.keys - sequence.queries;
}

std::vector<Stretch> read_keys(const HeadProblem& h, const SequenceOfHeads& sequence) {
  const int64_t shift = diagonal_of(*h.problem, sequence);
  const bool fills = h.empty_row != Conventions::EmptyRow::zero;
  std::vector<Stretch> stretches;
  for (int64_t i = 0; i < sequence.queries; ++i) {
    int64_t lowest = 0, highest = sequence.keys - 1;
    if (h.problem->mask == Mask::causal) highest = std::min(highest, i + shift);
    if (const auto& window = h.problem->window) {
      if (window->left >= 0) lowest = std::max(lowest, i + shift - window->left);
      if (window->right >= 0) highest = std::min(highest, i + shift + window->right);
    }
    const bool empty = highest < lowest;
    stretches.push_back(empty ? Stretch{0, fills ? sequence.stored_keys : 0, true} : Stretch{lowest, highest + 1, false});
  }
  stretches.resize(h.queries, Stretch{0, 0, true});
  return stretches;
}

std::vector<int64_t> keys_read(const std::vector<Stretch>& stretches, int64_t keys, bool by_empty_rows) {
  std::vector<int64_t> read(keys + 1, 0);
  for (const Stretch& s : stretches)
    if (by_empty_rows || !s.empty) ++read[s.begin], --read[s.end];
  for (int64_t j = 0, open = 0; j < keys; ++j) read[j] = (open += read[j]) > 0;
  read.pop_back();
  return read;
}

Span span_of(const std::vector<std::vector<Stretch>>& sequences, int64_t first, int64_t rows) {
  Span span{first, rows};
  int64_t end = 0;
  for (const auto& stretches : sequences) {
    for (int64_t i = first; i < first + rows; ++i) {
      const Stretch& s = stretches[i];
      if (!s.reads()) continue;
      span.key = end == 0 ? s.begin : std::min(span.key, s.begin);
      end = std::max(end, s.end);
      span.fills = span.fills || s.empty;
    }
  }
  span.keys = end - span.key;
  return span;
}

Samples choose_samples(const HeadProblem& h, const std::vector<std::vector<Stretch>>& stretches) {
  Samples samples;
  const int64_t heads_of_sequence = h.heads / static_cast<int64_t>(stretches.size());
  for (int64_t head = 0; head < h.heads && samples.owners.size() < kScoreSamples; ++head) {
    const std::vector<Stretch>& of_rows = stretches[head / heads_of_sequence];
    const size_t before = samples.owners.size();
    samples.first.resize((head + 1) * h.queries, -1);
    for (int64_t i = 0; i < h.queries && samples.owners.size() - before < kScoreSamples; ++i) {
      samples.first[head * h.queries + i] = static_cast<int64_t>(samples.owners.size());
      samples.owners.resize(samples.owners.size() + samples_of_row(of_rows[i], i), head);
    }
  }
  return samples;
}

}  // namespace attnbench::torch_oracle
