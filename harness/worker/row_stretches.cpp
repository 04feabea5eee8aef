#include "harness/worker/row_stretches.hpp"

#include <algorithm>

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/parallel.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// Elements of a stretch: on a CPU a dozen such arrays stay in a core's cache, on a GPU in little memory.
constexpr int64_t kCpuElements = 1 << 14, kGpuElements = 1 << 23;

}  // namespace

std::vector<RowStretch> row_stretches(const std::vector<Tensor>& tensors, int64_t elements, bool together) {
  std::vector<RowStretch> stretches;
  int64_t channels = 0, room = 0;  // rows that the last stretch may still take
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!together || tensors[i].size(1) != channels) channels = tensors[i].size(1), room = 0;
    const int64_t rows = tensors[i].size(0);
    for (int64_t first = 0, taken = 0; first < rows; first += taken) {
      if (room == 0) {
        stretches.emplace_back();
        room = std::max<int64_t>(1, elements / channels);
      }
      taken = std::min(room, rows - first);
      stretches.back().parts.push_back({i, first, taken});
      room -= taken;
    }
  }
  return stretches;
}

Tensor RowStretch::of(const std::vector<Tensor>& all) const {
  std::vector<Tensor> rows;
  for (const RowPart& part : parts) rows.push_back(all[part.tensor].narrow(0, part.first, part.rows));
  return rows.size() == 1 ? rows.front() : at::cat(rows);
}

Tensor RowStretch::by_parts(const std::function<Tensor(int64_t first, int64_t rows)>& answer) const {
  std::vector<Tensor> answers;
  int64_t first = 0;
  for (const RowPart& part : parts) {
    answers.push_back(answer(first, part.rows));
    first += part.rows;
  }
  return at::stack(answers);
}

std::vector<Tensor> by_stretches(const std::vector<Tensor>& tensors, const std::function<Tensor(const RowStretch&)>& measure) {
  std::vector<Tensor> of_tensors(tensors.size(), at::zeros({0, 0}, at::kDouble));
  if (tensors.empty()) return of_tensors;
  const bool cpu = tensors.front().is_cpu();
  const std::vector<RowStretch> stretches = row_stretches(tensors, cpu ? kCpuElements : kGpuElements, !cpu);
  if (stretches.empty()) return of_tensors;
  std::vector<Tensor> answers(stretches.size());
  for_each_piece(tensors.front().device(), static_cast<int64_t>(answers.size()),
                 [&](int64_t i) { answers[i] = measure(stretches[i]); });
  const Tensor all = at::cat(answers).to(at::kCPU);
  std::vector<int64_t> parts(tensors.size(), 0);
  for (const RowStretch& stretch : stretches)
    for (const RowPart& part : stretch.parts) ++parts[part.tensor];
  int64_t first = 0;
  for (size_t i = 0; i < tensors.size(); first += parts[i++])
    if (parts[i] > 0) of_tensors[i] = all.narrow(0, first, parts[i]);
  return of_tensors;
}

}  // namespace attnbench
