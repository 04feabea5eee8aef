#include "harness/worker/verdict_statistics.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dot.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/error_model.hpp"
#include "harness/attention/parallel.hpp"
#include "harness/attention/spacing.hpp"
#include "harness/attention/torch_dtype.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// Elements that are worked on at once: on a CPU a dozen such arrays stay in a core's cache, on a GPU in little memory.
constexpr int64_t kCpuElements = 1 << 14, kGpuElements = 1 << 23;

/// Neighbouring rows of a tensor.
struct Stretch {
  int64_t first = 0, rows = 0;
  Tensor of(const Tensor& all) const { return all.narrow(0, first, rows); }
};

/// What `measure` (float64 […]) says about each stretch of the rows of `like` [rows, channels]: [stretches, …] on the CPU.
Tensor by_stretches(const Tensor& like, const std::function<Tensor(const Stretch&)>& measure) {
  const int64_t elements = like.is_cpu() ? kCpuElements : kGpuElements;
  const int64_t rows = like.size(0), step = std::max<int64_t>(1, elements / like.size(1));
  std::vector<Tensor> parts((rows + step - 1) / step);
  for_each_piece(like.device(), static_cast<int64_t>(parts.size()), [&](int64_t i) {
    parts[i] = measure({i * step, std::min(step, rows - i * step)});
  });
  return parts.empty() ? at::zeros({0, 0}, at::kDouble) : at::stack(parts).to(at::kCPU);
}

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

/// Gain beside round(x64) and the model of it: the columns kRoundedGain, kInnerGain, kInnerVariance, kMaxStep.
/// x: [rows, channels], contiguous; signal: x / sigma; has_gain: [rows].
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
  return {counted((got - of_dtype).mul_(weight)).sum(), counted(tau * weight.abs()).sum(), counted(of_tau).sum(),
          counted(step * weight.abs()).amax()};
}

/// |a - b|: 0 where they are the same, NaN included, else infinity where one is not finite.
Tensor absolute_difference(const Tensor& a, const Tensor& b) {
  const Tensor difference = (a - b).abs();
  const Tensor same = (a == b) | (a.isnan() & b.isnan());
  return at::where(difference < kInfinity, difference, at::where(same, 0.0, kInfinity));
}

/// What is measured of a stretch of rows: sums, then the largest |error|, the largest |z| and the element that has it.
enum Column {
  kElements,
  kExact,
  kViolations,
  kFinite,
  kWithin,
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
  kRoundedGain,       ///< (got - round(x)) x / sigma^2; this and the next three: only where only outputs are rounded
  kInnerGain,         ///< tau |x| / sigma^2
  kInnerVariance,     ///< (tau ulp + tau^2) x^2 / sigma^4
  kMaxStep,           ///< largest ulp |x| / sigma^2
  kMaxAbs,
  kMaxZ,
  kAtMaxZ,
  kColumns
};

class Measurement {
 public:
  Measurement(const Tensor& got, const Expected& expected, Dtype dtype, double z_limit, bool only_outputs_rounded)
      : got_(as_rows(got)),
        value_(as_rows(expected.value)),
        variance_(as_rows(expected.variance)),
        freedom_(expected.freedom.flatten()),
        dtype_(dtype),
        z_limit_(z_limit),
        only_outputs_rounded_(only_outputs_rounded) {
    if (expected.allowance.defined()) allowance_ = as_rows(expected.allowance);
  }
  ErrorStatistics run();

 private:
  Tensor measure_rows(const Stretch& stretch) const;
  Tensor find_in_rows(const Stretch& stretch) const;
  void take_sums(const Tensor& parts);
  void find_bad_elements();

  Tensor got_, value_, variance_, allowance_;  ///< [rows, channels]
  Tensor freedom_;                             ///< [rows]
  const Dtype dtype_;
  const double z_limit_;
  const bool only_outputs_rounded_;
  ErrorStatistics s_;
};

/// The columns; an element without a z counts as one without an error.
Tensor Measurement::measure_rows(const Stretch& stretch) const {
  const Tensor got = stretch.of(got_), value = stretch.of(value_), variance = stretch.of(variance_);
  const Tensor difference = got - value, finite = difference.abs() < kInfinity, exact = variance == 0;
  const Tensor measured = finite.logical_and(exact.logical_not());
  const Tensor error = at::where(measured, difference, 0.0), x = at::where(measured, value, 0.0);
  const Tensor sigma = at::where(measured, variance, kInfinity).sqrt_();
  const Tensor z = error / sigma, signal = x / sigma;
  const Tensor energy = z.square().sum(1), signal2 = signal.square().sum(1);
  const Tensor freedom = stretch.of(freedom_), has_gain = freedom != 0;
  const auto gained = [&](const Tensor& rows) { return at::where(has_gain, rows, 0.0).sum(); };
  const auto count = [](const Tensor& which) { return which.sum().to(at::kDouble); };
  const auto product = [](const Tensor& a, const Tensor& b) { return at::dot(a.flatten(), b.flatten()); };
  const Tensor size = z.abs(), none = at::zeros({}, got.options());
  std::array<Tensor, 4> inner{none, none, none, none};
  if (only_outputs_rounded_) inner = gain_columns(got, x, sigma, signal, has_gain, dtype_);
  const auto [max_z, at_max_z] = size.flatten().max(0);
  return at::stack({count(measured),
                    count(exact),
                    count(exact & (got != value)),
                    count(finite),
                    count(size <= z_limit_),
                    product(error, error),
                    product(error, x),
                    product(x, x),
                    energy.sum(),
                    signal2.sum(),
                    gained((z * signal).sum(1)),
                    gained(signal2),
                    gained(signal.abs().sum(1).square()),
                    allowance_.defined() ? (stretch.of(allowance_) / sigma).square().sum() : none,
                    gained(energy),
                    gained(energy.square() / freedom),
                    inner[0],
                    inner[1],
                    inner[2],
                    inner[3],
                    at::where(finite, difference.abs(), 0.0).amax(),
                    max_z,
                    at_max_z.to(at::kDouble) + static_cast<double>(stretch.first * got.size(1))});
}

/// Of the elements that fail: mismatches, the first mismatch or violation, the first of all; infinity: none.
Tensor Measurement::find_in_rows(const Stretch& stretch) const {
  const Tensor got = stretch.of(got_), value = stretch.of(value_), variance = stretch.of(variance_);
  const Tensor mismatch = nonfinite_mismatch(got, value, variance, dtype_);
  const Tensor outright = wrong_outright(mismatch, got, value, variance);
  const Tensor beyond = beyond_limit(got, value, variance, z_limit_);
  const int64_t begin = stretch.first * got.size(1);
  const Tensor place = at::arange(begin, begin + got.numel(), got.options()).view(got.sizes());
  const auto first = [&](const Tensor& which) { return at::where(which, place, kInfinity).amin(); };
  return at::stack({mismatch.sum().to(at::kDouble), first(outright), first(outright | beyond)});
}

void Measurement::find_bad_elements() {
  const Tensor parts = by_stretches(got_, [this](const Stretch& stretch) { return find_in_rows(stretch); });
  s_.nonfinite_mismatches = static_cast<int64_t>(parts.select(1, 0).sum().item<double>());
  const double outright = parts.select(1, 1).amin().item<double>(), any = parts.select(1, 2).amin().item<double>();
  if (any < kInfinity) s_.first_bad = static_cast<int64_t>(any);
  if (outright < kInfinity) s_.worst = static_cast<int64_t>(outright);  // outranks every z
  if (s_.nonfinite_mismatches > 0) s_.max_abs = kInfinity;
}

void Measurement::take_sums(const Tensor& parts) {
  const Tensor totals = parts.sum(0);
  const double* sum = totals.const_data_ptr<double>();
  s_.elements = static_cast<int64_t>(sum[kElements]);
  s_.exact_elements = static_cast<int64_t>(sum[kExact]);
  s_.exact_violations = static_cast<int64_t>(sum[kViolations]);
  s_.beyond_limit = got_.numel() - static_cast<int64_t>(sum[kWithin]);
  s_.max_abs = parts.select(1, kMaxAbs).amax().item<double>();
  if (s_.elements == 0) return;
  const auto [max_z, stretch] = parts.select(1, kMaxZ).max(0);
  s_.max_z = max_z.item<double>();
  s_.worst = static_cast<int64_t>(parts.select(1, kAtMaxZ)[stretch.item<int64_t>()].item<double>());
  const double n = sum[kElements], got2 = sum[kExpected2] + 2 * sum[kCross] + sum[kError2];
  s_.rms_z = std::sqrt(sum[kZ2] / n);
  s_.signal = std::sqrt(sum[kSignal2] / n);
  s_.allowance = std::sqrt(sum[kAllowance2] / n);
  if (sum[kEnergy2OfFreedom] > 0) s_.samples = sum[kEnergy] * sum[kEnergy] / sum[kEnergy2OfFreedom];
  if (sum[kExpected2] > 0) s_.rel_l2 = std::sqrt(sum[kError2] / sum[kExpected2]);
  if (sum[kExpected2] > 0) s_.cosine = got2 > 0 ? (sum[kExpected2] + sum[kCross]) / std::sqrt(sum[kExpected2] * got2) : 0;
  if (sum[kGainedSignal2] > 0) {
    s_.gain = sum[kGain] / sum[kGainedSignal2];
    s_.gain_error = std::sqrt(sum[kCoherent2]) / sum[kGainedSignal2];
    s_.gain_beside_rounded = sum[kRoundedGain] / sum[kGainedSignal2];
    s_.inner_gain = sum[kInnerGain] / sum[kGainedSignal2];
    s_.inner_gain_error = std::sqrt(sum[kInnerVariance]) / sum[kGainedSignal2];
    s_.gain_step = parts.select(1, kMaxStep).amax().item<double>() / sum[kGainedSignal2];
  }
}

ErrorStatistics Measurement::run() {
  const Tensor parts = by_stretches(got_, [this](const Stretch& stretch) { return measure_rows(stretch); });
  if (parts.size(0) == 0) return s_;
  take_sums(parts);
  const bool all_finite = parts.select(1, kFinite).sum().item<double>() == static_cast<double>(got_.numel());
  if (!all_finite || s_.exact_violations > 0 || s_.beyond_limit > 0) find_bad_elements();
  return s_;
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

ErrorStatistics measure_errors(const at::Tensor& got, const Expected& expected, Dtype dtype, double z_limit,
                               bool only_outputs_rounded) {
  return Measurement(got, expected, dtype, z_limit, only_outputs_rounded).run();
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

FieldErrors field_errors(const at::Tensor& got, const Expected& expected, Dtype dtype, const std::vector<Tolerance>& tolerances) {
  const Tensor actual = as_rows(got), value = as_rows(expected.value);
  const Tensor parts = by_stretches(actual, [&](const Stretch& stretch) {
    const Tensor x = rounded(stretch.of(value), dtype);
    Tensor error = (stretch.of(actual) - x).abs_();
    // The two agree where all is finite; on a GPU it takes less time to compute the other than to ask which will do.
    if (!error.is_cpu() || !(error.amax() < kInfinity).item<bool>()) error = absolute_difference(stretch.of(actual), x);
    std::vector<Tensor> largest{error.amax()};
    for (const Tolerance& t : tolerances) {
      const Tensor ratio = error / x.abs().mul_(t.relative).add_(t.absolute);
      largest.push_back(at::where(ratio.isnan(), kInfinity, ratio).amax());  // infinity of infinity, where the two differ
    }
    return at::stack(largest);
  });
  FieldErrors errors{0, std::vector<double>(tolerances.size(), 0)};
  if (parts.size(0) == 0) return errors;
  const Tensor largest = parts.amax(0);
  errors.max_abs = largest[0].item<double>();
  for (size_t i = 0; i < tolerances.size(); ++i) errors.of_tolerance[i] = largest[static_cast<int64_t>(i) + 1].item<double>();
  return errors;
}

std::vector<Difference> differences_of(const std::vector<at::Tensor>& tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  std::vector<Difference> differences;
  if (count < 2) return differences;
  std::vector<Tensor> all;
  for (const Tensor& tensor : tokens) all.push_back(as_rows(tensor));
  const Tensor parts = by_stretches(all.front(), [&](const Stretch& stretch) {  // [3, pairs]: max, sum of squares, of a's squares
    std::vector<Tensor> largest, error2, size2, stretches;
    for (const Tensor& tensor : all) stretches.push_back(stretch.of(tensor));
    const Tensor stacked = at::stack(stretches);
    for (int64_t a = 0; a + 1 < count; ++a) {
      const Tensor left = stacked[a], error = absolute_difference(left, stacked.narrow(0, a + 1, count - a - 1)).flatten(1);
      const Tensor size = at::where(left.abs() < kInfinity, left, 0.0).square().sum();
      largest.push_back(error.amax(1));
      error2.push_back(error.square().sum(1));
      size2.push_back(size.expand({error.size(0)}));
    }
    return at::stack({at::cat(largest), at::cat(error2), at::cat(size2)});
  });
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
