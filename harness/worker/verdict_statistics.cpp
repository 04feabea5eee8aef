#include "harness/worker/verdict_statistics.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/take.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "harness/attention/error_model.hpp"
#include "harness/attention/spacing.hpp"
#include "harness/attention/tokens.hpp"
#include "harness/attention/torch_dtype.hpp"
#include "harness/worker/row_stretches.hpp"

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

/// Float64 x in the dtype.
Tensor rounded(const Tensor& x, Dtype dtype) {
  return x.to(at::kFloat).to(torch_dtype(dtype)).to(at::kDouble);
}

/// Of each row, gain beside round(x64) and the model of it: the columns kRoundedGain, kInnerGain, kInnerVariance, kMaxStep.
/// x: [rows, channels]; signal: x / sigma; has_gain: [rows].
std::array<Tensor, 4> gain_columns(const Tensor& got, const Tensor& x, const Tensor& sigma, const Tensor& signal,
                                   const Tensor& has_gain, Dtype dtype) {
  constexpr double kSums = 0x1p-23;  // 2 e: sums in float32, which a rounded output hides from sigma
  constexpr double kTie = 0x1p-20;   // in ulps: closer to the middle between two values there is no telling where it rounds
  const Tensor weight = at::where(has_gain.unsqueeze(1), signal / sigma, 0.0), step = spacing(dtype, x);
  const Tensor tau = (sigma.square() - step.square() / 12).clamp_min_(0).sqrt_().add_(x.abs(), kSums);
  const Tensor of_tau = (tau * (step + tau)).mul_(weight.square());
  const Tensor of_dtype = rounded(x, dtype);
  const Tensor is_tie = ((x - of_dtype).abs_() - step / 2).abs_() <= step * kTie;
  // An element that is not measured has an infinite sigma and no weight.
  const Tensor counts = (weight != 0).logical_and_(is_tie.logical_not());
  const auto counted = [&](const Tensor& values) { return at::where(counts, values, 0.0); };
  return {counted((got - of_dtype).mul_(weight)).sum(1), counted(tau * weight.abs()).sum(1), counted(of_tau).sum(1),
          counted(step * weight.abs()).amax(1)};
}

/// |a - b|: 0 where they are the same, NaN included, else infinity where one is not finite.
Tensor absolute_difference(const Tensor& a, const Tensor& b) {
  const Tensor difference = (a - b).abs();
  const Tensor same = (a == b) | (a.isnan() & b.isnan());
  return at::where(difference < kInfinity, difference, at::where(same, 0.0, kInfinity));
}

/// What is measured of a part of the rows: sums, then the largest of all, then the element that has the largest |z|.
enum Column {
  kElements,
  kExact,
  kViolations,
  kFinite,
  kError2,  ///< (got - x)^2
  kCross,   ///< (got - x) x
  kExpected2,
  kZ2,
  kSignal2,
  kGain,
  kGainedSignal2,
  kCoherent2,
  kAllowance2,
  kEnergy,            ///< E_r of rows with a freedom
  kEnergy2OfFreedom,  ///< E_r^2 / nu_r
  kRoundedGain,       ///< (got - round(x)) x / sigma^2; this, the next two and kMaxStep: only where only outputs are rounded
  kInnerGain,         ///< tau |x| / sigma^2
  kInnerVariance,     ///< (tau ulp + tau^2) x^2 / sigma^4
  kMaxStep,           ///< largest ulp |x| / sigma^2
  kMaxAbs,
  kMaxZ,
  kAtMaxZ,       ///< its index
  kGotAtMaxZ,    ///< got there
  kValueAtMaxZ,  ///< x there
};

/// Tensors [rows, channels] side by side.
class Measurement {
 public:
  Measurement(const std::vector<Compared>& tensors, Dtype dtype, bool only_outputs_rounded);
  /// Of each tensor: [parts, columns] on the CPU.
  std::vector<Tensor> columns() const;

 private:
  Tensor measure(const RowStretch& stretch) const;
  Tensor allowances2(const RowStretch& stretch, const Tensor& sigma) const;

  std::vector<Tensor> got_, value_, variance_, freedom_;  ///< [rows, channels], freedom_: [rows]
  std::vector<Tensor> allowance_;                         ///< [rows, channels], undefined where there is none
  const Dtype dtype_;
  const bool only_outputs_rounded_;
};

Measurement::Measurement(const std::vector<Compared>& tensors, Dtype dtype, bool only_outputs_rounded)
    : dtype_(dtype), only_outputs_rounded_(only_outputs_rounded) {
  for (const Compared& t : tensors) {
    const Expected& x = *t.expected;
    got_.push_back(as_rows(t.got));
    value_.push_back(as_rows(x.value));
    variance_.push_back(as_rows(x.variance));
    allowance_.push_back(x.allowance.defined() ? as_rows(x.allowance) : Tensor());
    freedom_.push_back(x.freedom.flatten());
  }
}

std::vector<Tensor> Measurement::columns() const {
  return by_stretches(got_, [this](const RowStretch& stretch) { return measure(stretch); });
}

/// Sum of (b / sigma)^2 over each row of a stretch, [rows].
Tensor Measurement::allowances2(const RowStretch& stretch, const Tensor& sigma) const {
  std::vector<Tensor> of_parts;
  int64_t first = 0;
  for (const RowPart& part : stretch.parts) {
    const Tensor& all = allowance_[part.tensor];
    const Tensor of_sigma = sigma.narrow(0, std::exchange(first, first + part.rows), part.rows);
    of_parts.push_back(all.defined() ? (all.narrow(0, part.first, part.rows) / of_sigma).square_().sum(1)
                                     : at::zeros({part.rows}, sigma.options()));
  }
  return at::cat(of_parts);
}

/// The columns; an element without a z counts as one without an error.
Tensor Measurement::measure(const RowStretch& stretch) const {
  const Tensor got = stretch.of(got_), value = stretch.of(value_), variance = stretch.of(variance_);
  const Tensor difference = got - value, finite = difference.abs() < kInfinity, exact = variance == 0;
  const Tensor measured = finite.logical_and(exact.logical_not());
  const Tensor error = at::where(measured, difference, 0.0), x = at::where(measured, value, 0.0);
  const Tensor sigma = at::where(measured, variance, kInfinity).sqrt_();
  const Tensor z = error / sigma, signal = x / sigma;
  const Tensor energy = z.square().sum(1), signal2 = signal.square().sum(1);
  const Tensor freedom = stretch.of(freedom_), has_gain = freedom != 0;
  const auto gained = [&](const Tensor& of_rows) { return at::where(has_gain, of_rows, 0.0); };
  const auto count = [](const Tensor& which) { return which.sum(1).to(at::kDouble); };
  const auto product = [](const Tensor& a, const Tensor& b) { return (a * b).sum(1); };
  const Tensor none = at::zeros_like(energy);
  std::array<Tensor, 4> inner{none, none, none, none};
  if (only_outputs_rounded_) inner = gain_columns(got, x, sigma, signal, has_gain, dtype_);
  const Tensor sums = at::stack(
      {count(measured), count(exact), count(exact & (got != value)), count(finite), error.square().sum(1), product(error, x),
       x.square().sum(1), energy, signal2, gained(product(z, signal)), gained(signal2), gained(signal.abs().sum(1).square()),
       allowances2(stretch, sigma), gained(energy), gained(energy.square() / freedom), inner[0], inner[1], inner[2]});
  const auto [size, channel] = z.abs().max(1);
  const Tensor largest = at::stack({inner[3], at::where(finite, difference.abs_(), 0.0).amax(1), size});
  const Tensor columns = stretch.by_parts([&](int64_t first, int64_t rows) {
    return at::cat({sums.narrow(1, first, rows).sum(1), largest.narrow(1, first, rows).amax(1)});
  });
  const Tensor row = stretch.by_parts([&](int64_t first, int64_t rows) { return size.narrow(0, first, rows).argmax(); });
  std::vector<int64_t> begin_here, begin_in_tensor;
  int64_t next = 0;
  for (const RowPart& part : stretch.parts) {
    begin_here.push_back(std::exchange(next, next + part.rows));
    begin_in_tensor.push_back(part.first);
  }
  const Tensor row_here = row + to_tensor(begin_here, got.device()), at_channel = channel.index_select(0, row_here);
  const Tensor here = row_here * got.size(1) + at_channel;
  const Tensor place = (row + to_tensor(begin_in_tensor, got.device())) * got.size(1) + at_channel;
  return at::cat({columns, at::stack({place.to(at::kDouble), got.take(here), value.take(here)}, 1)}, 1);
}

/// Of the elements that fail: how many there are, which is the first, and which outranks every z.
void find_bad_elements(const Compared& t, Dtype dtype, ErrorStatistics& s) {
  const std::vector<Tensor> got{as_rows(t.got)}, value{as_rows(t.expected->value)}, variance{as_rows(t.expected->variance)};
  // By stretch: mismatches, those beyond the limit of z, the first mismatch or violation, the first of all; infinity: none.
  const Tensor parts =
      by_stretches(got, [&](const RowStretch& stretch) {
        const Tensor actual = stretch.of(got), x = stretch.of(value), of_x = stretch.of(variance);
        const Tensor mismatch = nonfinite_mismatch(actual, x, of_x, dtype);
        const Tensor outright = wrong_outright(mismatch, actual, x, of_x), beyond = beyond_limit(actual, x, of_x, t.z_limit);
        const int64_t begin = stretch.parts.front().first * actual.size(1);
        const Tensor place = at::arange(begin, begin + actual.numel(), actual.options()).view(actual.sizes());
        const auto count = [](const Tensor& which) { return which.sum().to(at::kDouble); };
        const auto first = [&](const Tensor& which) { return at::where(which, place, kInfinity).amin(); };
        return at::stack({count(mismatch), count(beyond), first(outright), first(outright | beyond)}).unsqueeze(0);
      }).front();
  s.nonfinite_mismatches = static_cast<int64_t>(parts.select(1, 0).sum().item<double>());
  s.beyond_limit = static_cast<int64_t>(parts.select(1, 1).sum().item<double>());
  const double outright = parts.select(1, 2).amin().item<double>(), any = parts.select(1, 3).amin().item<double>();
  if (any < kInfinity) s.first_bad = static_cast<int64_t>(any);
  if (s.nonfinite_mismatches > 0) s.max_abs = kInfinity;
  if (outright == kInfinity) return;
  s.worst = static_cast<int64_t>(outright);
  s.worst_got = got.front().flatten()[*s.worst].item<double>();
  s.worst_expected = value.front().flatten()[*s.worst].item<double>();
}

/// parts: [parts, columns] of a tensor on the CPU, at least one.
ErrorStatistics statistics_of(const Tensor& parts) {
  ErrorStatistics s;
  const Tensor totals = parts.sum(0);
  const double* sum = totals.const_data_ptr<double>();
  const auto largest = [&](Column column) { return parts.select(1, column).amax().item<double>(); };
  s.elements = static_cast<int64_t>(sum[kElements]);
  s.exact_elements = static_cast<int64_t>(sum[kExact]);
  s.exact_violations = static_cast<int64_t>(sum[kViolations]);
  s.max_abs = largest(kMaxAbs);
  if (s.elements == 0) return s;
  const Tensor worst = parts[parts.select(1, kMaxZ).argmax().item<int64_t>()];
  const double* of_worst = worst.const_data_ptr<double>();
  s.max_z = of_worst[kMaxZ];
  s.worst = static_cast<int64_t>(of_worst[kAtMaxZ]);
  s.worst_got = of_worst[kGotAtMaxZ];
  s.worst_expected = of_worst[kValueAtMaxZ];
  const double n = sum[kElements], got2 = sum[kExpected2] + 2 * sum[kCross] + sum[kError2];
  s.rms_z = std::sqrt(sum[kZ2] / n);
  s.signal = std::sqrt(sum[kSignal2] / n);
  s.allowance = std::sqrt(sum[kAllowance2] / n);
  if (sum[kEnergy2OfFreedom] > 0) s.samples = sum[kEnergy] * sum[kEnergy] / sum[kEnergy2OfFreedom];
  if (sum[kExpected2] > 0) s.rel_l2 = std::sqrt(sum[kError2] / sum[kExpected2]);
  if (sum[kExpected2] > 0) s.cosine = got2 > 0 ? (sum[kExpected2] + sum[kCross]) / std::sqrt(sum[kExpected2] * got2) : 0;
  if (sum[kGainedSignal2] > 0) {
    s.gain = sum[kGain] / sum[kGainedSignal2];
    s.gain_error = std::sqrt(sum[kCoherent2]) / sum[kGainedSignal2];
    s.gain_beside_rounded = sum[kRoundedGain] / sum[kGainedSignal2];
    s.inner_gain = sum[kInnerGain] / sum[kGainedSignal2];
    s.inner_gain_error = std::sqrt(sum[kInnerVariance]) / sum[kGainedSignal2];
    s.gain_step = largest(kMaxStep) / sum[kGainedSignal2];
  }
  return s;
}

/// Of some thousand elements, from 1 to 2; 0 of one that must be 0.
Tensor mantissas_of(const Expected& expected) {
  constexpr int64_t kSamples = 4096, kStride = 2654435761;  // a prime: samples of all rows and channels, in no order of theirs
  Tensor value = expected.value.flatten(), variance = expected.variance.flatten();
  if (value.numel() > kSamples) {
    const Tensor place = at::arange(kSamples, value.options().dtype(at::kLong)).mul_(kStride).remainder_(value.numel());
    value = value.index_select(0, place);
    variance = variance.index_select(0, place);
  }
  const Tensor bits = value.view(at::kLong).bitwise_and((int64_t(1) << 52) - 1).bitwise_or(int64_t(1023) << 52);
  return at::where(variance != 0, bits.view(at::kDouble), 0.0);
}

double distinct_among(std::vector<double> mantissas) {
  constexpr double kSame = 1e-9;  // what a float64 oracle may make of equal values, and far more
  std::erase(mantissas, 0.0);
  std::sort(mantissas.begin(), mantissas.end());
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
  const std::vector<Tensor> columns = Measurement(tensors, dtype, only_outputs_rounded).columns();
  std::vector<ErrorStatistics> all(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (columns[i].size(0) == 0) continue;
    all[i] = statistics_of(columns[i]);
    const double finite = columns[i].select(1, kFinite).sum().item<double>();
    const bool all_finite = finite == static_cast<double>(tensors[i].got.numel());
    const bool within = all[i].max_z <= tensors[i].z_limit;  // not where z is NaN
    if (!all_finite || !within || all[i].exact_violations > 0) find_bad_elements(tensors[i], dtype, all[i]);
  }
  return all;
}

Tensor bad_elements(const Tensor& got, const Tensor& value, const Tensor& variance, Dtype dtype, double z_limit) {
  const Tensor mismatch = nonfinite_mismatch(got, value, variance, dtype);
  return wrong_outright(mismatch, got, value, variance) | beyond_limit(got, value, variance, z_limit);
}

std::vector<double> distinct_values(const std::vector<const Expected*>& tensors) {
  std::vector<Tensor> all;
  for (const Expected* tensor : tensors) all.push_back(mantissas_of(*tensor));
  const Tensor host = at::cat(all).to(at::kCPU);
  std::vector<double> distinct;
  const double* next = host.const_data_ptr<double>();
  for (const Tensor& tensor : all) {
    distinct.push_back(distinct_among({next, next + tensor.numel()}));
    next += tensor.numel();
  }
  return distinct;
}

std::vector<FieldErrors> field_errors(const std::vector<Compared>& tensors, Dtype dtype,
                                      const std::vector<Tolerance>& tolerances) {
  std::vector<Tensor> got, value;
  for (const Compared& t : tensors) got.push_back(as_rows(t.got)), value.push_back(as_rows(t.expected->value));
  const std::vector<Tensor> parts = by_stretches(got, [&](const RowStretch& stretch) {
    const Tensor actual = stretch.of(got), x = rounded(stretch.of(value), dtype);
    Tensor error = (actual - x).abs_();
    // The two agree where all is finite; on a GPU it takes less time to compute the other than to ask which will do.
    if (!error.is_cpu() || !(error.amax() < kInfinity).item<bool>()) error = absolute_difference(actual, x);
    std::vector<Tensor> largest{error.amax(1)};
    for (const Tolerance& t : tolerances) {
      const Tensor ratio = error / x.abs().mul_(t.relative).add_(t.absolute);
      largest.push_back(at::where(ratio.isnan(), kInfinity, ratio).amax(1));  // infinity of infinity, where the two differ
    }
    const Tensor of_rows = at::stack(largest);
    return stretch.by_parts([&](int64_t first, int64_t rows) { return of_rows.narrow(1, first, rows).amax(1); });
  });
  std::vector<FieldErrors> all(tensors.size(), {0, std::vector<double>(tolerances.size(), 0)});
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (parts[i].size(0) == 0) continue;
    const Tensor largest = parts[i].amax(0);
    const double* of_tensor = largest.const_data_ptr<double>();
    all[i] = {of_tensor[0], {of_tensor + 1, of_tensor + 1 + tolerances.size()}};
  }
  return all;
}

std::vector<Difference> differences_of(const std::vector<at::Tensor>& tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  std::vector<Difference> differences;
  if (count < 2) return differences;
  std::vector<Tensor> all;
  for (const Tensor& tensor : tokens) all.push_back(as_rows(tensor));
  const auto compare = [&](const RowStretch& stretch) {  // [1, 3, pairs]: max, sum of squares, of a's squares
    std::vector<Tensor> largest, error2, size2, stretches;
    for (const Tensor& tensor : all) stretches.push_back(stretch.of({tensor}));
    const Tensor stacked = at::stack(stretches);
    for (int64_t a = 0; a + 1 < count; ++a) {
      const Tensor left = stacked[a], error = absolute_difference(left, stacked.narrow(0, a + 1, count - a - 1)).flatten(1);
      const Tensor size = at::where(left.abs() < kInfinity, left, 0.0).square().sum();
      largest.push_back(error.amax(1));
      error2.push_back(error.square().sum(1));
      size2.push_back(size.expand({error.size(0)}));
    }
    return at::stack({at::cat(largest), at::cat(error2), at::cat(size2)}).unsqueeze(0);
  };
  const Tensor parts = by_stretches({all.front()}, compare).front();
  for (int64_t pair = 0; pair < count * (count - 1) / 2; ++pair) {
    Difference& difference = differences.emplace_back();
    if (parts.size(0) == 0) continue;
    const Tensor columns = parts.select(2, pair);
    difference.max_abs = columns.select(1, 0).amax().item<double>();
    const double squares = columns.select(1, 1).sum().item<double>(), of_a = columns.select(1, 2).sum().item<double>();
    difference.rel_l2 = squares > 0 ? std::sqrt(squares / of_a) : 0;
  }
  return differences;
}

}  // namespace attnbench
