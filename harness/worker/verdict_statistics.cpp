#include "harness/worker/verdict_statistics.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <stdexcept>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/parallel.hpp"
#include "harness/attention/tokens.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// [tokens, heads, channels] as [rows, channels].
Tensor as_rows(const Tensor& tokens) {
  return tokens.flatten(0, 1);
}

/// A value so large that the dtype holds infinity instead.
Tensor overflows(Dtype dtype, const Tensor& expected, const Tensor& variance) {
  return dtype == Dtype::fp16 ? expected.abs() + variance.sqrt() * 6.5 >= 65520 : expected != expected;
}

/// Where one is not finite and the other is not the same, or would not be in this dtype.
Tensor nonfinite_mismatch(const Tensor& got, const Tensor& expected, const Tensor& variance, Dtype dtype) {
  const Tensor same = (got == expected) | (got.isnan() & expected.isnan());
  const Tensor rounded_up = (got.abs() == kInfinity) & (expected.abs() < kInfinity) & ((got > 0) == (expected > 0));
  const Tensor finite = (got - expected).abs() < kInfinity;
  return (finite | same | (rounded_up & overflows(dtype, expected, variance))).logical_not();
}

/// Not as the mask or the oracle's kind of value has it, whatever z is.
Tensor wrong_outright(const Tensor& mismatch, const Tensor& got, const Tensor& value, const Tensor& variance) {
  return mismatch | ((variance == 0) & (got != value));
}

Tensor beyond_limit(const Tensor& got, const Tensor& value, const Tensor& variance, double z_limit) {
  const Tensor difference = (got - value).abs();
  const Tensor measured = (difference < kInfinity) & (variance != 0);
  return measured & (difference / variance.sqrt() <= z_limit).logical_not();
}

/// |a - b|: 0 where they are the same, NaN included, else infinity where one is not finite.
Tensor absolute_difference(const Tensor& a, const Tensor& b) {
  const Tensor difference = (a - b).abs();
  const Tensor same = (a == b) | (a.isnan() & b.isnan());
  return at::where(difference < kInfinity, difference, at::where(same, 0.0, kInfinity));
}

/// Tensors as row steps read them.
class ManyRows {
 public:
  /// At least one tensor.
  explicit ManyRows(const std::vector<Compared>& tensors);
  /// What error_columns() needs beside the values.
  void add_variances(const std::vector<Compared>& tensors);
  /// [tensors, columns] on the CPU, as `measure` puts them.
  Tensor measured(int64_t columns, const std::function<void(const Columns&)>& measure) const;

  c10::Device device() const { return device_; }
  const std::vector<ComparedRows>& all() const { return all_; }

 private:
  /// Throws std::invalid_argument for another number of elements or another device.
  const double* keep(const Tensor& tensor, int64_t elements);

  const c10::Device device_;
  std::vector<Tensor> kept_;  ///< contiguous
  std::vector<ComparedRows> all_;
};

ManyRows::ManyRows(const std::vector<Compared>& tensors) : device_(tensors.front().got.device()) {
  for (const Compared& t : tensors) {
    const int64_t rows = t.got.size(0) * t.got.size(1), channels = t.got.size(2);
    const double* const got = keep(t.got, rows * channels);
    all_.push_back({.rows = rows, .channels = channels, .got = got, .value = keep(t.expected->value, rows * channels)});
  }
}

void ManyRows::add_variances(const std::vector<Compared>& tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Expected& x = *tensors[i].expected;
    ComparedRows& t = all_[i];
    t.variance = keep(x.variance, t.rows * t.channels);
    if (x.allowance.defined()) t.allowance = keep(x.allowance, t.rows * t.channels);
    t.freedom = keep(x.freedom, t.rows);
  }
}

const double* ManyRows::keep(const Tensor& tensor, int64_t elements) {
  if (tensor.numel() != elements || tensor.device() != device_)
    throw std::invalid_argument("what is compared differs in its number of elements or its device");
  return kept_.emplace_back(tensor.contiguous()).const_data_ptr<double>();
}

Tensor ManyRows::measured(int64_t columns, const std::function<void(const Columns&)>& measure) const {
  const auto tensors = static_cast<int64_t>(all_.size()), parts = parts_of(device_, all_);
  const Tensor of_parts = at::empty({tensors, columns, parts}, kept_.front().options());
  const Tensor of_tensors = at::empty({tensors, columns}, kept_.front().options());
  measure({parts, of_parts.mutable_data_ptr<double>(), of_tensors.mutable_data_ptr<double>()});
  return of_tensors.to(at::kCPU);
}

/// [stretches, …] on the CPU: what `measure` (float64) says of `count` rows from `first` on. On a CPU a dozen arrays of a
/// stretch stay in a core's cache, on a GPU they take little memory. rows: [at least one, channels].
Tensor by_stretches(const Tensor& rows, const std::function<Tensor(int64_t first, int64_t count)>& measure) {
  const int64_t elements = rows.is_cpu() ? 1 << 14 : 1 << 23, each = std::max<int64_t>(1, elements / rows.size(1));
  std::vector<Tensor> answers((rows.size(0) + each - 1) / each);
  for_each_piece(rows.device(), static_cast<int64_t>(answers.size()),
                 [&](int64_t i) { answers[i] = measure(i * each, std::min(each, rows.size(0) - i * each)); });
  return at::stack(answers).to(at::kCPU);
}

/// Of the elements that fail: how many there are, which is the first, and which outranks every z.
void find_bad_elements(const Compared& t, Dtype dtype, ErrorStatistics& s) {
  const Tensor got = as_rows(t.got), value = as_rows(t.expected->value), variance = as_rows(t.expected->variance);
  // By stretch: mismatches, those beyond the limit of z, the first mismatch or violation, the first of all; infinity: none.
  const Tensor parts = by_stretches(got, [&](int64_t begin, int64_t rows) {
    const auto stretch = [&](const Tensor& all) { return all.narrow(0, begin, rows); };
    const Tensor actual = stretch(got), x = stretch(value), of_x = stretch(variance);
    const Tensor mismatch = nonfinite_mismatch(actual, x, of_x, dtype);
    const Tensor outright = wrong_outright(mismatch, actual, x, of_x), beyond = beyond_limit(actual, x, of_x, t.z_limit);
    const int64_t index = begin * actual.size(1);
    const Tensor place = at::arange(index, index + actual.numel(), actual.options()).view(actual.sizes());
    const auto count = [](const Tensor& which) { return which.sum().to(at::kDouble); };
    const auto first = [&](const Tensor& which) { return at::where(which, place, kInfinity).amin(); };
    return at::stack({count(mismatch), count(beyond), first(outright), first(outright | beyond)});
  });
  s.nonfinite_mismatches = static_cast<int64_t>(parts.select(1, 0).sum().item<double>());
  s.beyond_limit = static_cast<int64_t>(parts.select(1, 1).sum().item<double>());
  const double outright = parts.select(1, 2).amin().item<double>(), any = parts.select(1, 3).amin().item<double>();
  if (any < kInfinity) s.first_bad = static_cast<int64_t>(any);
  if (s.nonfinite_mismatches > 0) s.max_abs = kInfinity;
  if (outright == kInfinity) return;
  s.worst = static_cast<int64_t>(outright);
  s.worst_got = got.flatten()[*s.worst].item<double>();
  s.worst_expected = value.flatten()[*s.worst].item<double>();
}

/// columns: kErrorColumns.
ErrorStatistics statistics_of(const double* columns) {
  ErrorStatistics s;
  s.elements = static_cast<int64_t>(columns[kElements]);
  s.exact_elements = static_cast<int64_t>(columns[kExact]);
  s.exact_violations = static_cast<int64_t>(columns[kViolations]);
  s.max_abs = columns[kMaxAbs];
  if (s.elements == 0) return s;
  s.max_z = columns[kMaxZ];
  s.worst = static_cast<int64_t>(columns[kAtMaxZ]);
  s.worst_got = columns[kGotAtMaxZ];
  s.worst_expected = columns[kValueAtMaxZ];
  const double n = columns[kElements], got2 = columns[kExpected2] + 2 * columns[kCross] + columns[kError2];
  s.rms_z = std::sqrt(columns[kZ2] / n);
  s.signal = std::sqrt(columns[kSignal2] / n);
  s.allowance = std::sqrt(columns[kAllowance2] / n);
  if (columns[kEnergy2OfFreedom] > 0) s.samples = columns[kEnergy] * columns[kEnergy] / columns[kEnergy2OfFreedom];
  if (columns[kExpected2] > 0) s.rel_l2 = std::sqrt(columns[kError2] / columns[kExpected2]);
  if (columns[kExpected2] > 0)
    s.cosine = got2 > 0 ? (columns[kExpected2] + columns[kCross]) / std::sqrt(columns[kExpected2] * got2) : 0;
  if (columns[kGainedSignal2] > 0) {
    s.gain = columns[kGain] / columns[kGainedSignal2];
    s.gain_error = std::sqrt(columns[kCoherent2]) / columns[kGainedSignal2];
    s.gain_beside_rounded = columns[kRoundedGain] / columns[kGainedSignal2];
    s.inner_gain = columns[kInnerGain] / columns[kGainedSignal2];
    s.inner_gain_error = std::sqrt(columns[kInnerVariance]) / columns[kGainedSignal2];
    s.gain_step = columns[kMaxStep] / columns[kGainedSignal2];
  }
  return s;
}

/// mantissas: ascending, not negative; 0 are none.
double distinct_among(std::span<const double> mantissas) {
  constexpr double kSame = 1e-9;  // what a float64 oracle may make of equal values, and far more
  mantissas = mantissas.subspan(std::upper_bound(mantissas.begin(), mantissas.end(), 0.0) - mantissas.begin());
  double pairs = 0, alike = 0;  // how often an element has the same value as one before it
  for (size_t i = 1; i < mantissas.size(); ++i) {
    alike = mantissas[i] - mantissas[i - 1] <= kSame ? alike + 1 : 0;
    pairs += alike;
  }
  const double count = static_cast<double>(mantissas.size());
  return pairs > 0 ? count * (count - 1) / 2 / pairs : kInfinity;
}

}  // namespace

Element TokenShape::element(int64_t index) const {
  const int64_t token = index / (heads * channels);
  const int64_t sequence = std::upper_bound(offsets.begin(), offsets.end(), token) - offsets.begin() - 1;
  return {sequence, index / channels % heads, token - offsets[sequence], index % channels};
}

std::vector<ErrorStatistics> measure_errors(const std::vector<Compared>& tensors, Dtype dtype, bool only_outputs_rounded) {
  std::vector<ErrorStatistics> all;
  if (tensors.empty()) return all;
  ManyRows rows(tensors);
  rows.add_variances(tensors);
  const Tensor columns = rows.measured(
      kErrorColumns, [&](const Columns& out) { error_columns(rows.device(), rows.all(), dtype, only_outputs_rounded, out); });
  const double* of_tensor = columns.const_data_ptr<double>();
  for (const Compared& t : tensors) {
    ErrorStatistics& s = all.emplace_back(statistics_of(of_tensor));
    const bool all_finite = of_tensor[kFinite] == static_cast<double>(t.got.numel());
    const bool within = s.max_z <= t.z_limit;  // not where z is NaN
    if (!all_finite || !within || s.exact_violations > 0) find_bad_elements(t, dtype, s);
    of_tensor += kErrorColumns;
  }
  return all;
}

Tensor bad_elements(const Tensor& got, const Tensor& value, const Tensor& variance, Dtype dtype, double z_limit) {
  const Tensor mismatch = nonfinite_mismatch(got, value, variance, dtype);
  return wrong_outright(mismatch, got, value, variance) | beyond_limit(got, value, variance, z_limit);
}

std::vector<double> distinct_values(const std::vector<const Expected*>& tensors) {
  constexpr int64_t kSamples = 4096;
  const auto count = static_cast<int64_t>(tensors.size());
  const Tensor samples = at::zeros({count, kSamples}, tensors.front()->value.options());
  for (int64_t i = 0; i < count; ++i) {
    const Tensor value = tensors[i]->value.contiguous(), variance = tensors[i]->variance.contiguous();
    const ComparedRows numbers{.rows = value.numel(), .channels = 1, .value = data_of(value), .variance = data_of(variance)};
    sample_mantissas(value.device(), numbers, kSamples, data_of(samples[i]));
  }
  const Tensor sorted = sorted_rows(samples).to(at::kCPU);
  std::vector<double> distinct;
  for (int64_t i = 0; i < count; ++i)
    distinct.push_back(distinct_among({sorted.const_data_ptr<double>() + i * kSamples, kSamples}));
  return distinct;
}

std::vector<FieldErrors> field_errors(const std::vector<Compared>& tensors, Dtype dtype,
                                      const std::vector<Tolerance>& tolerances) {
  std::vector<FieldErrors> all;
  if (tensors.empty()) return all;
  const ManyRows rows(tensors);
  const auto count = static_cast<int64_t>(1 + tolerances.size());
  const Tensor largest =
      rows.measured(count, [&](const Columns& out) { field_columns(rows.device(), rows.all(), dtype, tolerances, out); });
  const double* of_tensor = largest.const_data_ptr<double>();
  for (size_t i = 0; i < tensors.size(); ++i, of_tensor += count)
    all.push_back({of_tensor[0], {of_tensor + 1, of_tensor + count}});
  return all;
}

std::vector<Difference> differences_of(const std::vector<at::Tensor>& tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  std::vector<Difference> differences;
  if (count < 2) return differences;
  std::vector<Tensor> all;
  for (const Tensor& tensor : tokens) all.push_back(as_rows(tensor));
  differences.resize(static_cast<size_t>(count * (count - 1) / 2));
  if (all.front().size(0) == 0) return differences;
  const auto compare = [&](int64_t first, int64_t rows) {  // [3, pairs]: max, sum of squares, of a's squares
    std::vector<Tensor> largest, error2, size2, stretches;
    for (const Tensor& tensor : all) stretches.push_back(tensor.narrow(0, first, rows));
    const Tensor stacked = at::stack(stretches);
    for (int64_t a = 0; a + 1 < count; ++a) {
      const Tensor left = stacked[a], error = absolute_difference(left, stacked.narrow(0, a + 1, count - a - 1)).flatten(1);
      const Tensor size = at::where(left.abs() < kInfinity, left, 0.0).square().sum();
      largest.push_back(error.amax(1));
      error2.push_back(error.square().sum(1));
      size2.push_back(size.expand({error.size(0)}));
    }
    return at::stack({at::cat(largest), at::cat(error2), at::cat(size2)});
  };
  const Tensor parts = by_stretches(all.front(), compare);
  int64_t pair = 0;
  for (Difference& difference : differences) {
    const Tensor columns = parts.select(2, pair++);
    difference.max_abs = columns.select(1, 0).amax().item<double>();
    const double squares = columns.select(1, 1).sum().item<double>(), of_a = columns.select(1, 2).sum().item<double>();
    difference.rel_l2 = squares > 0 ? std::sqrt(squares / of_a) : 0;
  }
  return differences;
}

}  // namespace attnbench
