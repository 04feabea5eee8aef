#include "harness/worker/row_errors.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "harness/attention/element.hpp"
#include "harness/attention/parallel.hpp"
#include "harness/attention/row_team.hpp"

namespace attnbench {
namespace {

/// Elements of a part on a CPU: enough to be worth a core's while, and few enough for every core to have some.
constexpr int64_t kCpuElements = 1 << 14;
/// Parts of a tensor on a GPU: a few for each block of threads that it holds.
constexpr int64_t kGpuParts = 1 << 11;

int64_t quotient_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

int64_t rows_of_part(c10::Device device, const ComparedRows& t) {
  const int64_t rows = device.is_cpu() ? kCpuElements / std::max<int64_t>(1, t.channels) : quotient_up(t.rows, kGpuParts);
  return std::max<int64_t>(1, rows);
}

/// The first of the largest numbers, none of which is below 0, that a thread has seen; NaN is larger than all.
struct Largest {
  double x = -1;
  int64_t place = -1;  ///< nothing was seen

  ATTNBENCH_ON_BOTH void see(double other, int64_t at) {
    if (other > x || (other != other && x == x)) x = other, place = at;
  }
  ATTNBENCH_ON_BOTH Largest of_all(const RowTeam& team) const {
    const double largest = team.max(x);
    const bool has_it = x == largest || x != x;
    return {largest, static_cast<int64_t>(-team.max(has_it ? -static_cast<double>(place) : -INFINITY))};
  }
};

/// A part of a tensor: which rows it has, and where its columns are.
struct Part {
  ComparedRows t;
  int64_t each = 1;           ///< rows of a part
  int64_t parts = 0;          ///< those behind the last row have none
  double* columns = nullptr;  ///< [columns, parts]

  ATTNBENCH_ON_BOTH int64_t first(int64_t part) const { return part * each < t.rows ? part * each : t.rows; }
  ATTNBENCH_ON_BOTH double& at(int64_t column, int64_t part) const { return columns[column * parts + part]; }
};

std::vector<Part> cut(c10::Device device, const std::vector<ComparedRows>& tensors, int64_t columns, const Columns& out) {
  std::vector<Part> all;
  for (const ComparedRows& t : tensors) {
    double* const here = out.of_parts + static_cast<int64_t>(all.size()) * columns * out.parts;
    all.push_back({t, rows_of_part(device, t), out.parts, here});
  }
  return all;
}

/// What a thread has seen of a part.
struct Seen {
  double columns[kMaxZ] = {};
  Largest z;
};

/// An element; one without a z has no error, and an infinite sigma.
struct Measured {
  double error, x, sigma, z, signal;
};

/// A "row" is a part of a tensor.
struct ErrorStep {
  Part of;
  Dtype dtype;
  Spacing spacing;
  bool only_outputs_rounded;

  int64_t width() const { return of.t.channels; }

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t part) const {
    Seen seen;
    for (int64_t row = of.first(part); row < of.first(part + 1); ++row) add_row(team, row, seen);
    put(team, part, seen, std::make_index_sequence<kMaxStep>(), std::index_sequence<kMaxStep, kMaxAbs>());
    const Largest worst = seen.z.of_all(team);
    if (!team.writes()) return;
    of.at(kMaxZ, part) = worst.x;
    of.at(kAtMaxZ, part) = static_cast<double>(worst.place);
    if (worst.place < 0) return;
    of.at(kGotAtMaxZ, part) = of.t.got[worst.place];
    of.at(kValueAtMaxZ, part) = of.t.value[worst.place];
  }

 private:
  ATTNBENCH_ON_BOTH void add_row(const RowTeam& team, int64_t row, Seen& seen) const {
    const double freedom = of.t.freedom[row];
    const bool has_gain = freedom != 0;
    double energy = 0, coherent = 0;
    team.each(of.t.channels, [&](int64_t channel) {
      const int64_t i = row * of.t.channels + channel;
      const Measured m = add_element(i, seen);
      energy += m.z * m.z;
      coherent += std::fabs(m.signal);
      if (!has_gain) return;
      seen.columns[kGain] += m.z * m.signal;
      seen.columns[kGainedSignal2] += m.signal * m.signal;
      if (only_outputs_rounded) add_gain(of.t.got[i], m, seen);
    });
    energy = team.sum(energy);
    coherent = team.sum(coherent);
    if (!team.writes()) return;
    seen.columns[kZ2] += energy;
    if (!has_gain) return;
    seen.columns[kCoherent2] += coherent * coherent;
    seen.columns[kEnergy] += energy;
    seen.columns[kEnergy2OfFreedom] += energy * energy / freedom;
  }

  ATTNBENCH_ON_BOTH Measured add_element(int64_t i, Seen& seen) const {
    const double got = of.t.got[i], value = of.t.value[i], variance = of.t.variance[i], difference = got - value;
    const bool finite = std::fabs(difference) < INFINITY, exact = variance == 0, measured = finite && !exact;
    Measured m;
    m.error = measured ? difference : 0;
    m.x = measured ? value : 0;
    m.sigma = std::sqrt(measured ? variance : INFINITY);
    m.z = m.error / m.sigma;
    m.signal = m.x / m.sigma;
    const double allowance = of.t.allowance ? of.t.allowance[i] / m.sigma : 0;
    seen.columns[kElements] += measured;
    seen.columns[kExact] += exact;
    seen.columns[kViolations] += exact && got != value;
    seen.columns[kFinite] += finite;
    seen.columns[kError2] += m.error * m.error;
    seen.columns[kCross] += m.error * m.x;
    seen.columns[kExpected2] += m.x * m.x;
    seen.columns[kSignal2] += m.signal * m.signal;
    seen.columns[kAllowance2] += allowance * allowance;
    seen.columns[kMaxAbs] = larger(seen.columns[kMaxAbs], finite ? std::fabs(difference) : 0);
    seen.z.see(std::fabs(m.z), i);
    return m;
  }

  /// The gain beside round(x), and the model of it.
  ATTNBENCH_ON_BOTH void add_gain(double got, const Measured& m, Seen& seen) const {
    constexpr double kSums = 0x1p-23;  // 2 e: sums in float32, which a rounded output hides from sigma
    constexpr double kTie = 0x1p-20;   // in ulps: closer to the middle between two values there is no telling where it rounds
    const double weight = m.signal / m.sigma, step = spacing.at(m.x), rounded = round_to(dtype, static_cast<float>(m.x));
    const bool is_tie = std::fabs(std::fabs(m.x - rounded) - step / 2) <= step * kTie;
    if (weight == 0 || is_tie) return;
    const double inner2 = m.sigma * m.sigma - step * step / 12, size = std::fabs(weight);
    const double tau = std::sqrt(inner2 < 0 ? 0 : inner2) + kSums * std::fabs(m.x);
    seen.columns[kRoundedGain] += (got - rounded) * weight;
    seen.columns[kInnerGain] += tau * size;
    seen.columns[kInnerVariance] += tau * (step + tau) * (size * size);
    seen.columns[kMaxStep] = larger(seen.columns[kMaxStep], step * size);
  }

  /// Columns are told apart when this is compiled: an array whose place is not known until it runs is not kept in registers.
  template <size_t... sums, size_t... largest>
  ATTNBENCH_ON_BOTH void put(const RowTeam& team, int64_t part, const Seen& seen, std::index_sequence<sums...>,
                             std::index_sequence<largest...>) const {
    const auto write = [&](int64_t column, double x) {
      if (team.writes()) of.at(column, part) = x;
    };
    (write(sums, team.sum(seen.columns[sums])), ...);
    (write(largest, team.max(seen.columns[largest])), ...);
  }
};

/// A "row" is a part of a tensor.
struct FieldStep {
  Part of;
  Dtype dtype;
  Tolerance tolerances[kMostTolerances];
  size_t count;  ///< of them

  int64_t width() const { return of.each * of.t.channels; }

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t part) const {
    double largest = 0, ratios[kMostTolerances] = {};
    const int64_t first = of.first(part) * of.t.channels;
    team.each(of.first(part + 1) * of.t.channels - first, [&](int64_t i) {
      const double x = round_to(dtype, static_cast<float>(of.t.value[first + i])), error = difference(of.t.got[first + i], x);
      largest = error > largest ? error : largest;
      for (size_t k = 0; k < kMostTolerances; ++k)
        if (k < count) ratios[k] = larger(ratios[k], ratio(error, x, tolerances[k]));
    });
    largest = team.max(largest);
    if (team.writes()) of.at(0, part) = largest;
    for (size_t k = 0; k < kMostTolerances; ++k) {
      const double of_team = team.max(ratios[k]);
      if (k < count && team.writes()) of.at(static_cast<int64_t>(k) + 1, part) = of_team;
    }
  }

 private:
  /// |got - x|: 0 where they are the same, NaN included, else infinity where one is not finite.
  static ATTNBENCH_ON_BOTH double difference(double got, double x) {
    const double error = std::fabs(got - x);
    if (error < INFINITY) return error;
    return got == x || (got != got && x != x) ? 0 : INFINITY;
  }
  /// Infinity of infinity, where the two differ.
  static ATTNBENCH_ON_BOTH double ratio(double error, double x, const Tolerance& tolerance) {
    const double of_tolerance = error / (tolerance.absolute + tolerance.relative * std::fabs(x));
    return of_tolerance != of_tolerance ? INFINITY : of_tolerance;
  }
};

/// Of all parts of a tensor. A "row" is a column of a tensor.
struct TogetherStep {
  Columns of;
  int64_t columns;
  int64_t sums;   ///< so many columns are summed, the next are the largest
  int64_t worst;  ///< … up to this, which is kMaxZ of error columns

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t row) const {
    const int64_t column = row % columns;
    if (column > worst) return;
    if (column == worst) return take_worst(team, row);
    const double* const x = of.of_parts + row * of.parts;
    double sum = 0, largest = 0;
    team.each(of.parts, [&](int64_t part) {
      sum += x[part];
      largest = larger(largest, x[part]);
    });
    const double together = column < sums ? team.sum(sum) : team.max(largest);
    if (team.writes()) of.of_tensors[row] = together;
  }

 private:
  /// What the first part with the largest z has from there on.
  ATTNBENCH_ON_BOTH void take_worst(const RowTeam& team, int64_t row) const {
    const double* const z = of.of_parts + row * of.parts;
    Largest largest;
    team.each(of.parts, [&](int64_t part) { largest.see(z[part], part); });
    const int64_t part = largest.of_all(team).place;
    if (part < 0) return;
    team.each(columns - worst, [&](int64_t i) { of.of_tensors[row + i] = z[i * of.parts + part]; });
  }
};

/// A "row" is some neighbours among the samples.
struct MantissaStep {
  static constexpr int64_t kTogether = 256;
  ComparedRows t;
  int64_t count;
  double* mantissas;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t row) const {
    const int64_t left = count - row * kTogether;
    team.each(left < kTogether ? left : kTogether, [&](int64_t i) {
      const int64_t sample = row * kTogether + i;
      mantissas[sample] = t.variance[place(sample)] != 0 ? mantissa(t.value[place(sample)]) : 0;
    });
  }

 private:
  ATTNBENCH_ON_BOTH int64_t place(int64_t sample) const {
    constexpr int64_t kStride = 2654435761;  // a prime: samples of all rows and channels, in no order of theirs
    const int64_t elements = t.rows * t.channels;
    return elements > count ? sample * kStride % elements : sample;
  }
  static ATTNBENCH_ON_BOTH double mantissa(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits & ((uint64_t(1) << 52) - 1)) | uint64_t(1023) << 52;
    memcpy(&x, &bits, sizeof x);
    return x;
  }
};

template <typename Step>
void measure_parts(c10::Device device, const std::vector<Step>& steps, const TogetherStep& together) {
  const auto tensors = static_cast<int64_t>(steps.size());
  const int64_t parts = together.of.parts;
  if (device.is_cpu())
    for_each_piece(device, tensors * parts, [&](int64_t i) { steps[i / parts](RowTeam(), i % parts); });
  else
    for (const Step& step : steps) for_each_row(true, parts, step.width(), step);
  for_each_row(!device.is_cpu(), tensors * together.columns, parts, together);
}

}  // namespace

int64_t parts_of(c10::Device device, const std::vector<ComparedRows>& tensors) {
  int64_t most = 0;
  for (const ComparedRows& t : tensors) most = std::max(most, quotient_up(t.rows, rows_of_part(device, t)));
  return most;
}

void error_columns(c10::Device device, const std::vector<ComparedRows>& tensors, Dtype dtype, bool only_outputs_rounded,
                   const Columns& columns) {
  std::vector<ErrorStep> steps;
  for (const Part& part : cut(device, tensors, kErrorColumns, columns))
    steps.push_back({part, dtype, spacing_of(dtype), only_outputs_rounded});
  measure_parts(device, steps, {columns, kErrorColumns, kMaxStep, kMaxZ});
}

void field_columns(c10::Device device, const std::vector<ComparedRows>& tensors, Dtype dtype,
                   const std::vector<Tolerance>& tolerances, const Columns& columns) {
  if (tolerances.size() > kMostTolerances) throw std::invalid_argument("field_columns: more tolerances than kMostTolerances");
  const auto count = static_cast<int64_t>(1 + tolerances.size());
  FieldStep step{{}, dtype, {}, tolerances.size()};
  std::copy(tolerances.begin(), tolerances.end(), step.tolerances);
  std::vector<FieldStep> steps;
  for (const Part& part : cut(device, tensors, count, columns)) {
    step.of = part;
    steps.push_back(step);
  }
  measure_parts(device, steps, {columns, count, 0, count});
}

void sample_mantissas(c10::Device device, const ComparedRows& tensor, int64_t count, double* mantissas) {
  count = std::min(count, tensor.rows * tensor.channels);
  for_each_row(!device.is_cpu(), quotient_up(count, MantissaStep::kTogether), MantissaStep::kTogether,
               MantissaStep{tensor, count, mantissas});
}

}  // namespace attnbench
