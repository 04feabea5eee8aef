#include "harness/worker/bits.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <stdexcept>

#include <ATen/TensorOperators.h>
#include <ATen/ops/where.h>

#include "harness/worker/row_words.hpp"

namespace attnbench {
namespace {

/// As integers, contiguous.
at::Tensor bits_of(const at::Tensor& tensor) {
  const int64_t bytes = tensor.element_size();
  return tensor.contiguous().view(bytes == 1 ? at::kByte : bytes == 2 ? at::kShort : bytes == 4 ? at::kInt : at::kLong);
}

/// The place of each number among all of its dtype, 0 for 0 and -0.
at::Tensor places_of(const at::Tensor& elements) {
  const bool is_short = elements.element_size() == 2;
  const at::Tensor bits = bits_of(elements).to(at::kLong);
  const int64_t sign = is_short ? std::numeric_limits<int16_t>::min() : std::numeric_limits<int32_t>::min();
  return at::where(bits < 0, sign - bits, bits);  // of a negative number: minus its magnitude
}

double largest_distance(const at::Tensor& a, const at::Tensor& b) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const auto is_finite = [](const at::Tensor& x) { return x.to(at::kDouble).abs() < kInfinity; };
  const bool all_finite = (is_finite(a) & is_finite(b)).all().item<bool>();
  return all_finite ? static_cast<double>((places_of(a) - places_of(b)).abs().max().item<int64_t>()) : kInfinity;
}

using TensorPairs = std::vector<std::pair<at::Tensor, at::Tensor>>;

/// Of each pair; all are waited for once.
std::vector<bool> are_same(const TensorPairs& pairs, bool zeros_are_same) {
  std::vector<bool> same;
  TensorPairs kept;  // what the pointers point to
  std::vector<ElementPair> asked;
  std::vector<size_t> numbers;
  for (const auto& [a, b] : pairs) {
    same.push_back(a.defined() == b.defined());
    if (!a.defined() || !b.defined()) continue;
    same.back() = a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() && a.device() == b.device();
    if (!same.back()) continue;
    const auto& [left, right] = kept.emplace_back(a.contiguous(), b.contiguous());
    if (left.device() != kept.front().first.device()) throw std::invalid_argument("bits: tensors on two devices");
    asked.push_back({left.const_data_ptr(), right.const_data_ptr(), left.numel(), left.element_size(),
                     zeros_are_same && left.is_floating_point()});
    numbers.push_back(same.size() - 1);
  }
  if (asked.empty()) return same;
  const std::vector<bool> answers = same_elements(kept.front().first.device(), asked);
  for (size_t i = 0; i < asked.size(); ++i) same[numbers[i]] = answers[i];
  return same;
}

}  // namespace

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return are_same({{a, b}}, /*zeros_are_same=*/false).front();
}

bool same_bits(const Outputs& a, const Outputs& b) {
  const std::vector<bool> same =
      are_same({{a.o, b.o}, {a.lse, b.lse}, {a.dq, b.dq}, {a.dk, b.dk}, {a.dv, b.dv}, {a.kept, b.kept}},
               /*zeros_are_same=*/false);
  return std::ranges::all_of(same, std::identity());
}

std::vector<bool> same_values(const std::vector<std::pair<at::Tensor, at::Tensor>>& pairs) {
  return are_same(pairs, /*zeros_are_same=*/true);
}

std::optional<BitDifference> bit_difference(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type())
    throw std::invalid_argument("bit_difference: expected two tensors of equal sizes and dtype");
  if (same_bits(a, b)) return std::nullopt;
  const at::Tensor left = a.contiguous().view({-1}), right = b.contiguous().view({-1});
  const at::Tensor which = (bits_of(left) != bits_of(right)).nonzero().view({-1});
  BitDifference difference;
  difference.elements = which.size(0);
  difference.first = which[0].item<int64_t>();
  difference.a = left[difference.first].item<double>();
  difference.b = right[difference.first].item<double>();
  difference.max_ulp = largest_distance(left.index_select(0, which), right.index_select(0, which));
  return difference;
}

}  // namespace attnbench
