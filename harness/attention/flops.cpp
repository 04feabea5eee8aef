#include "harness/attention/flops.hpp"

#include <algorithm>

namespace attnbench {

namespace {

/// Sum over the queries of one sequence of the keys that each sees: an interval of keys for every query.
int64_t visible_pairs_of_sequence(const Problem& problem, int64_t lq, int64_t lk) {
  const int64_t offset = problem.align == Align::bottom_right ? lk - lq : 0;
  int64_t pairs = 0;
  for (int64_t i = 0; i < lq; ++i) {
    int64_t first = 0, last = lk - 1;
    if (problem.mask == Mask::causal) last = std::min(last, i + offset);
    if (problem.window && problem.window->left >= 0) first = std::max(first, i + offset - problem.window->left);
    if (problem.window && problem.window->right >= 0) last = std::min(last, i + offset + problem.window->right);
    pairs += std::max<int64_t>(0, last - first + 1);
  }
  return pairs;
}

}  // namespace

int64_t visible_pairs(const Problem& problem, const SequenceLengths& lengths) {
  int64_t pairs = 0;
  for (size_t n = 0; n < lengths.q.size(); ++n) pairs += visible_pairs_of_sequence(problem, lengths.q[n], lengths.k[n]);
  return pairs;
}

double exact_flops(const Problem& problem, const SequenceLengths& lengths, Pass pass) {
  const double pairs = double(visible_pairs(problem, lengths)) * double(problem.hq);
  const double d = double(problem.d), dv = double(problem.dv);
  return pass == Pass::forward ? 2 * pairs * (d + dv) : 2 * pairs * (3 * d + 2 * dv);
}

double paper_flops(const Problem& problem, const SequenceLengths& lengths, Pass pass) {
  double pairs = 0;
  for (size_t n = 0; n < lengths.q.size(); ++n) pairs += double(lengths.q[n]) * double(lengths.k[n]);
  double flops = 2 * pairs * double(problem.hq) * double(problem.d + problem.dv);
  if (problem.mask == Mask::causal) flops /= 2;
  return pass == Pass::forward ? flops : 2.5 * flops;
}

}  // namespace attnbench
