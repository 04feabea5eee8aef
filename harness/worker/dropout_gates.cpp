#include "harness/worker/dropout_gates.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/logical_xor.h>
#include <ATen/ops/stack.h>
#include <fmt/format.h>

#include "harness/attention/emulator_batch.hpp"
#include "harness/attention/kept.hpp"
#include "harness/attention/tokens.hpp"
#include "harness/worker/verdict_report.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// Of a mask: bool [heads, queries, keys], and which of it some query reads: bool [1, queries, keys].
struct SequenceMask {
  Tensor kept, read;
};

SequenceMask mask_of(const Case& c, const Inputs& inputs, Conventions::EmptyRow empty_row, int64_t n) {
  SequenceMask mask{kept_of_sequence(inputs, n), {}};
  emulation::Sequence s;
  s.real_keys = inputs.lengths.k[n];
  s.q_rows.resize(inputs.lengths.q[n]);
  s.k_rows.resize(mask.kept.size(2));
  s.find_reads(c.problem, empty_row);
  std::vector<int64_t> begin, end;
  for (const emulation::QueryPlace& r : s.reads) begin.push_back(r.begin), end.push_back(r.end);
  const c10::Device device = mask.kept.device();
  const Tensor keys = at::arange(mask.kept.size(2), mask.kept.options().dtype(at::kLong));
  const auto column = [&](const std::vector<int64_t>& rows) { return to_tensor(rows, device).unsqueeze(-1); };
  mask.read = ((keys >= column(begin)) & (keys < column(end))).unsqueeze(0);
  return mask;
}

double relative_entropy(double x, double y) {
  const auto term = [](double a, double b) { return a > 0 ? a * std::log(a / b) : 0; };
  return term(x, y) + term(1 - x, 1 - y);
}

/// Elements, and how many of them are what they are with some probability.
struct Count {
  std::string what;
  int64_t all = 0, hits = 0;

  double share() const { return all > 0 ? static_cast<double>(hits) / static_cast<double>(all) : 0; }
  double surprise(double expected) const { return all > 0 ? static_cast<double>(all) * relative_entropy(share(), expected) : 0; }
};

/// int64 [2]: the pairs of two masks that are read in both, and those of them that are alike. Left on the device.
Tensor alike(const SequenceMask& a, const SequenceMask& b) {
  const Tensor both = a.read & b.read;
  const Tensor equal = at::logical_xor(a.kept, b.kept).logical_not_().logical_and_(both);
  return at::stack({both.sum() * a.kept.size(0), equal.sum()});
}

/// The places whose partner is a step further, of which no two share one.
Tensor firsts(int64_t places, int64_t step, c10::Device device) {
  const Tensor place = at::arange(places - step, at::TensorOptions().dtype(at::kLong).device(device));
  return place.masked_select((place.div(step, "floor") % 2) == 0);
}

/// Pairs within a sequence: heads (dim 0), queries (1) or keys (2).
Tensor alike_within(const SequenceMask& mask, int64_t dim, int64_t step) {
  const Tensor first = firsts(mask.kept.size(dim), step, mask.kept.device());
  const auto of = [&](const Tensor& at_places) {
    const Tensor read = dim == 0 ? mask.read : mask.read.index_select(dim, at_places);
    return SequenceMask{mask.kept.index_select(dim, at_places), read};
  };
  return alike(of(first), of(first + step));
}

/// Pairs of a sequence and one a step further, as far as both go.
Tensor alike_across(const SequenceMask& a, const SequenceMask& b) {
  const int64_t queries = std::min(a.kept.size(1), b.kept.size(1)), keys = std::min(a.kept.size(2), b.kept.size(2));
  const auto of = [&](const SequenceMask& m) {
    const auto corner = [&](const Tensor& t) { return t.narrow(1, 0, queries).narrow(2, 0, keys); };
    return SequenceMask{corner(m.kept), corner(m.read)};
  };
  return alike(of(a), of(b));
}

Count counted(std::string what, const std::vector<Tensor>& sums) {
  if (sums.empty()) return {std::move(what)};
  const Tensor total = at::stack(sums).sum(0).to(at::kCPU);
  return {std::move(what), total[0].item<int64_t>(), total[1].item<int64_t>()};
}

Count count_kept(const std::vector<SequenceMask>& masks) {
  std::vector<Tensor> sums;
  for (const SequenceMask& m : masks) sums.push_back(at::stack({m.read.sum() * m.kept.size(0), (m.kept & m.read).sum()}));
  return counted("kept", sums);
}

std::vector<Count> count_copies(const std::vector<SequenceMask>& masks) {
  std::vector<Count> counts;
  const char* const names[] = {"heads", "queries", "keys"};
  for (int64_t dim = 0; dim < 3; ++dim) {
    int64_t longest = 0;
    for (const SequenceMask& m : masks) longest = std::max(longest, m.kept.size(dim));
    for (int64_t step = 1; step < longest; step = dim == 0 ? step + 1 : step * 2) {
      std::vector<Tensor> sums;
      for (const SequenceMask& m : masks)
        if (m.kept.size(dim) > step) sums.push_back(alike_within(m, dim, step));
      counts.push_back(counted(fmt::format("{} {} apart", names[dim], step), sums));
    }
  }
  for (size_t step = 1; step < masks.size(); step *= 2) {
    std::vector<Tensor> sums;
    for (size_t n = 0; n + step < masks.size(); ++n)
      if (n / step % 2 == 0) sums.push_back(alike_across(masks[n], masks[n + step]));
    counts.push_back(counted(fmt::format("sequences {} apart", step), sums));
  }
  return counts;
}

Gate coin_gate(double value, double limit, int64_t n) {
  return {value, limit, n, value <= limit ? Gate::Verdict::pass : Gate::Verdict::fail, limit};
}

}  // namespace

DropoutGates dropout_gates(const Case& c, const Inputs& inputs, Conventions::EmptyRow empty_row, double false_alarms) {
  std::vector<SequenceMask> masks;
  for (size_t n = 0; n < inputs.lengths.q.size(); ++n) masks.push_back(mask_of(c, inputs, empty_row, static_cast<int64_t>(n)));
  const double kept = 1 - c.problem.dropout.p, same = kept * kept + (1 - kept) * (1 - kept);
  const Count share = count_kept(masks);
  const std::vector<Count> copies = count_copies(masks);
  const double limit = std::log(2 * static_cast<double>(1 + copies.size()) / false_alarms);
  const double of_share = share.surprise(kept);
  Count worst{"nothing"};
  for (const Count& count : copies)
    if (count.surprise(same) > worst.surprise(same)) worst = count;
  const double of_copies = worst.surprise(same);
  DropoutGates out;
  out.gates["share"] = coin_gate(of_share, limit, share.all);
  out.gates["copies"] = coin_gate(of_copies, limit, worst.all);
  if (std::max(of_share, of_copies) <= limit) return out;
  // The greater surprise explains the other: a mask that drops nothing is alike everywhere, one of few coins has an odd share.
  out.reason = of_share >= of_copies
                   ? fmt::format("kept: {} of {} elements of P were kept, a share of {:.4g}, expected {:.4g}", share.hits,
                                 share.all, share.share(), kept)
                   : fmt::format("kept: {} are kept or dropped alike in {} of {} pairs, a share of {:.4g}, expected {:.4g}",
                                 worst.what, worst.hits, worst.all, worst.share(), same);
  return out;
}

std::string seed_says_nothing(const Case& c, const Inputs& inputs, const at::Tensor& other, Conventions::EmptyRow empty_row,
                              double false_alarms) {
  Inputs of_other = inputs;
  of_other.kept = other;
  std::vector<Tensor> sums;
  for (int64_t n = 0; n < static_cast<int64_t>(inputs.lengths.q.size()); ++n)
    sums.push_back(alike(mask_of(c, inputs, empty_row, n), mask_of(c, of_other, empty_row, n)));
  const Count count = counted("seeds", sums);
  const double kept = 1 - c.problem.dropout.p, same = kept * kept + (1 - kept) * (1 - kept);
  if (count.surprise(same) <= std::log(2 / false_alarms)) return "";
  return fmt::format(
      "kept: with another seed {} of {} elements are kept or dropped as before, a share of {:.4g}, expected {:.4g}", count.hits,
      count.all, count.share(), same);
}

std::optional<std::string> malformed_mask(const Case& c, const Inputs& inputs, const at::Tensor& kept) {
  if (c.problem.dropout.p > 0) return malformed("kept", kept, {sizes_of_kept(inputs), at::kBool, inputs.q.device()});
  return kept.defined() ? std::optional<std::string>("kept is among the outputs of a case without dropout") : std::nullopt;
}

}  // namespace attnbench
