#include "harness/worker/bits.hpp"

#include <limits>
#include <stdexcept>

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>

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

}  // namespace

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  if (a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type()) return false;
  return at::equal(a.contiguous().view({-1}).view(at::kByte), b.contiguous().view({-1}).view(at::kByte));
}

bool same_bits(const Outputs& a, const Outputs& b) {
  return same_bits(a.o, b.o) && same_bits(a.lse, b.lse) && same_bits(a.dq, b.dq) && same_bits(a.dk, b.dk) &&
         same_bits(a.dv, b.dv) && same_bits(a.kept, b.kept);
}

std::vector<bool> same_values(const std::vector<std::pair<at::Tensor, at::Tensor>>& pairs) {
  std::vector<bool> same;
  std::vector<at::Tensor> answers;
  std::vector<size_t> asked;
  for (const auto& [a, b] : pairs) {
    same.push_back(a.defined() == b.defined());
    if (!a.defined() || !b.defined()) continue;
    same.back() = a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type();
    if (!same.back()) continue;
    asked.push_back(same.size() - 1);
    answers.push_back(((a == b) | (bits_of(a) == bits_of(b))).all());
  }
  if (answers.empty()) return same;
  const at::Tensor host = at::stack(answers).to(at::kCPU);
  for (size_t i = 0; i < asked.size(); ++i) same[asked[i]] = host.const_data_ptr<bool>()[i];
  return same;
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
