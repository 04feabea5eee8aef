#include "harness/worker/regroup.hpp"

#include <ATen/core/Tensor.h>
#include <ATen/ops/index_put.h>

#include "harness/attention/tokens.hpp"

namespace attnbench {
namespace {

Case regrouped_case(const Case& c, const SequenceLengths& lengths, const std::vector<int64_t>& sequences, Layout layout) {
  Case regrouped = c;
  std::vector<int64_t> q, k;
  for (const int64_t n : sequences) {
    q.push_back(lengths.q.at(n));
    k.push_back(lengths.k.at(n));
  }
  Problem& p = regrouped.problem;
  p.b = static_cast<int64_t>(sequences.size());
  p.lq = p.lk = 0;
  p.lens = q;
  p.klens = k;
  p.layout = layout;
  p.pad = Pad::right;
  return regrouped;
}

std::vector<int64_t> ranks_of(const std::vector<int64_t>& lengths, const std::vector<int64_t>& sequences) {
  const std::vector<int64_t> offsets = offsets_of(lengths);
  std::vector<int64_t> ranks;
  for (const int64_t n : sequences)
    for (int64_t rank = offsets[n]; rank < offsets[n + 1]; ++rank) ranks.push_back(rank);
  return ranks;
}

std::vector<int64_t> at_ranks(const std::vector<int64_t>& rows, const std::vector<int64_t>& ranks) {
  std::vector<int64_t> chosen;
  for (const int64_t rank : ranks) chosen.push_back(rows[rank]);
  return chosen;
}

/// Rows `from_rows` of `from` to the rows `to_rows` of `to`, whatever the strides of either.
void copy_rows(const at::Tensor& from, const std::vector<int64_t>& from_rows, at::Tensor to,
               const std::vector<int64_t>& to_rows) {
  if (to_rows.empty() || to.numel() == 0) return;
  at::Tensor values = rows_of(from, from_rows, from.size(-2), from.size(-1));
  if (to.stride(-2) == 0) {  // all heads are one
    to = to.narrow(-2, 0, 1);
    values = values.narrow(1, 0, 1);
  }
  if (to.dim() == 3) {
    to.index_put_({to_tensor(to_rows, to.device())}, values);
    return;
  }
  std::vector<int64_t> sequences, positions;
  for (const int64_t row : to_rows) {
    sequences.push_back(row / to.size(1));
    positions.push_back(row % to.size(1));
  }
  to.index_put_({to_tensor(sequences, to.device()), to_tensor(positions, to.device())}, values);
}

}  // namespace

Regrouped regroup(const Case& c, const Inputs& inputs, const std::vector<int64_t>& sequences, Layout layout,
                  Conventions::Poison poison, const Device& device) {
  Regrouped r{regrouped_case(c, inputs.lengths, sequences, layout),
              {},
              ranks_of(inputs.lengths.q, sequences),
              ranks_of(inputs.lengths.k, sequences)};
  r.inputs = make_inputs(r.c, poison, device);
  r.inputs.scale = inputs.scale;
  const std::vector<int64_t> q_rows = at_ranks(inputs.q_rows, r.q_ranks), k_rows = at_ranks(inputs.k_rows, r.k_ranks);
  copy_rows(inputs.q, q_rows, r.inputs.q, r.inputs.q_rows);
  copy_rows(inputs.dout, q_rows, r.inputs.dout, r.inputs.q_rows);
  copy_rows(inputs.k, k_rows, r.inputs.k, r.inputs.k_rows);
  copy_rows(inputs.v, k_rows, r.inputs.v, r.inputs.k_rows);
  return r;
}

}  // namespace attnbench
