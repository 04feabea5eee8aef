// What is measured of rows, on numbers that can be counted by hand.
#include "harness/worker/row_errors.hpp"

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include "harness/run/declaration.hpp"

namespace attnbench {
namespace {

constexpr double kNoNumber = std::numeric_limits<double>::quiet_NaN();
using Doubles = std::vector<double>;

/// A tensor of errors, by default of expected values 0 with variances 1 and freedoms 1.
struct OwnRows {
  int64_t channels;
  Doubles got;
  Doubles value = Doubles(got.size(), 0), variance = Doubles(got.size(), 1);
  Doubles freedom = Doubles(got.size() / channels, 1), allowance = {};

  ComparedRows rows() const {
    const double* const b = allowance.empty() ? nullptr : allowance.data();
    return {static_cast<int64_t>(freedom.size()), channels, got.data(), value.data(), variance.data(), b, freedom.data()};
  }
};

std::vector<ComparedRows> rows_of_all(const std::vector<OwnRows>& tensors) {
  std::vector<ComparedRows> all;
  for (const OwnRows& t : tensors) all.push_back(t.rows());
  return all;
}

/// Of each tensor.
template <typename Measure>
std::vector<Doubles> columns_of(const std::vector<OwnRows>& tensors, size_t columns, const Measure& measure) {
  const std::vector<ComparedRows> all = rows_of_all(tensors);
  const int64_t parts = parts_of(c10::kCPU, all);
  Doubles of_parts(tensors.size() * columns * static_cast<size_t>(parts)), of_tensors(tensors.size() * columns);
  measure(all, Columns{parts, of_parts.data(), of_tensors.data()});
  std::vector<Doubles> answers;
  for (size_t i = 0; i < tensors.size(); ++i)
    answers.emplace_back(of_tensors.begin() + static_cast<int64_t>(i * columns),
                         of_tensors.begin() + static_cast<int64_t>((i + 1) * columns));
  return answers;
}

std::vector<Doubles> errors_of(const std::vector<OwnRows>& tensors, bool only_outputs_rounded = false) {
  return columns_of(tensors, kErrorColumns, [&](const std::vector<ComparedRows>& all, const Columns& columns) {
    error_columns(c10::kCPU, all, Dtype::bf16, only_outputs_rounded, columns);
  });
}

/// {index, |z|} of the worst element.
Doubles worst_of(const OwnRows& t) {
  const Doubles columns = errors_of({t}).front();
  return {columns[kAtMaxZ], columns[kMaxZ]};
}

TEST(ErrorColumns, AreSumsOverElementsAndOverRows) {
  // Errors 1, -2 | 0, 3; sigmas 1, 2 | 1, 1; so z is 1, -1 | 0, 3 and the signal 2, -2 | 1, 1.
  const OwnRows t{2, {3, -6, 1, 4}, {2, -4, 1, 1}, {1, 4, 1, 1}, {2, 3}, {1, 2, 0, 5}};
  const Doubles x = errors_of({t}).front();
  const Doubles kinds(x.begin(), x.begin() + kError2), squares(x.begin() + kError2, x.begin() + kGain);
  EXPECT_EQ(kinds, (Doubles{4, 0, 0, 4}));
  EXPECT_EQ(squares, (Doubles{1 + 4 + 9, 2 + 8 + 3, 4 + 16 + 1 + 1, 1 + 1 + 9, 4 + 4 + 1 + 1}));
  EXPECT_EQ(x[kGain], 2 + 2 + 3);
  EXPECT_EQ(x[kGainedSignal2], 10);
  EXPECT_EQ(x[kCoherent2], 4 * 4 + 2 * 2);
  EXPECT_EQ(x[kAllowance2], 1 + 1 + 25);
  EXPECT_EQ(x[kEnergy], 2 + 9);
  EXPECT_EQ(x[kEnergy2OfFreedom], 2 * 2 / 2. + 9 * 9 / 3.);
  EXPECT_EQ(Doubles(x.begin() + kRoundedGain, x.end()), (Doubles{0, 0, 0, 0, 3, 3, 3, 4, 1}));
}

TEST(ErrorColumns, OfARowWithoutFreedomHoldNoGain) {
  const OwnRows t{1, {3, 3}, {2, 2}, {1, 1}, {0, 1}};
  const Doubles x = errors_of({t}, true).front();
  EXPECT_EQ(x[kZ2], 2);
  EXPECT_EQ(x[kSignal2], 8);
  EXPECT_EQ(x[kGain], 2);
  EXPECT_EQ(x[kGainedSignal2], 4);
  EXPECT_EQ(x[kCoherent2], 4);
  EXPECT_EQ(x[kEnergy], 1);
  EXPECT_EQ(x[kEnergy2OfFreedom], 1);
  EXPECT_EQ(x[kRoundedGain], 2);
}

TEST(ErrorColumns, TellWhatHasNoZ) {
  const OwnRows t{3, {0, 3, kNoNumber, kInfinity, 5, 2}, {0, 0, 1, kInfinity, kInfinity, 1}, {0, 0, 1, 1, 1, 4}};
  const Doubles x = errors_of({t}).front();
  EXPECT_EQ(x[kElements], 1);
  EXPECT_EQ(x[kExact], 2);
  EXPECT_EQ(x[kViolations], 1);
  EXPECT_EQ(x[kFinite], 3);
  EXPECT_EQ(x[kZ2], 0.25);
  EXPECT_EQ(x[kMaxAbs], 3) << "of what must be 0";
  EXPECT_EQ(x[kAtMaxZ], 5);
}

/// Near 1 a bf16 has a spacing of 2^-7: sigma is nearly all of the inner rounding, tau.
TEST(ErrorColumns, OfRoundedOutputsMeasureTheGainBesideTheRoundedValue) {
  const double x = 1 + 0x1p-9, step = 0x1p-7;
  const OwnRows t{1, {1 + step, 1}, {x, 1 + 0x1p-8}, {1, 1}};  // the second is a tie
  const Doubles columns = errors_of({t}, true).front();
  const double tau = std::sqrt(1 - step * step / 12) + 0x1p-23 * x;
  EXPECT_DOUBLE_EQ(columns[kRoundedGain], step * x);  // beside 1
  EXPECT_DOUBLE_EQ(columns[kInnerGain], tau * x);
  EXPECT_DOUBLE_EQ(columns[kInnerVariance], tau * (step + tau) * x * x);
  EXPECT_DOUBLE_EQ(columns[kMaxStep], step * x);
  const Doubles ones(40000, 1);  // of several parts
  EXPECT_EQ(errors_of({{1, ones, ones}}, true).front()[kMaxStep], step);
}

TEST(WorstElement, IsTheFirstOfTheLargest) {
  EXPECT_EQ(worst_of({3, {1, -2, 2, 2, 1, -2}}), (Doubles{1, 2}));
  EXPECT_EQ(worst_of({3, {0, 0, 0, 0, 0, 0}}), (Doubles{0, 0}));
  OwnRows large{1, Doubles(50000, 1)};  // of several parts
  large.got[40000] = large.got[40001] = large.got[20000] = large.got[16383] = -7;
  EXPECT_EQ(worst_of(large), (Doubles{16383, 7}));
  const Doubles columns = errors_of({large}).front();
  EXPECT_EQ(columns[kGotAtMaxZ], -7);
  EXPECT_EQ(columns[kValueAtMaxZ], 0);
}

TEST(WorstElement, IsTheFirstWhoseZIsNone) {
  OwnRows t{1, Doubles(50000, 1)};
  t.got[3] = 9;
  t.variance[30000] = t.variance[30001] = t.variance[45000] = kNoNumber;
  const Doubles worst = worst_of(t);
  EXPECT_EQ(worst[0], 30000);
  EXPECT_TRUE(std::isnan(worst[1]));
}

/// Their numbers of rows, of channels and of parts differ.
TEST(SeveralTensors, HaveTheColumnsThatEachHasAlone) {
  std::vector<OwnRows> tensors{{4, Doubles(12, 2)}, {3, {}}, {1, Doubles(40000, 0.1)}, {70, Doubles(7000, -0.3)}, {7, {}}};
  tensors[2].got[39999] = 3;
  tensors[3].got[6999] = kNoNumber;
  const std::vector<Doubles> together = errors_of(tensors);
  for (const size_t i : {0, 2, 3}) EXPECT_EQ(together[i], errors_of({tensors[i]}).front()) << i;
  for (const size_t i : {1, 4})
    EXPECT_EQ(Doubles(together[i].begin(), together[i].begin() + kMaxZ), Doubles(kMaxZ, 0)) << "has no rows: " << i;
  EXPECT_EQ(together[2][kAtMaxZ], 39999);
  EXPECT_EQ(errors_of({{3, {}}, {1, {}}})[1][kElements], 0) << "no part at all";
}

std::vector<Doubles> field_of(const std::vector<OwnRows>& tensors, Dtype dtype, const std::vector<Tolerance>& tolerances) {
  return columns_of(tensors, 1 + tolerances.size(), [&](const std::vector<ComparedRows>& all, const Columns& columns) {
    field_columns(c10::kCPU, all, dtype, tolerances, columns);
  });
}

TEST(FieldColumns, AreTheLargestBesideTheRoundedValue) {
  const std::vector<Tolerance> tolerances{{0.5, 1}, {0, 0.5}};
  // bf16 has 1, then 1 + 2^-7: the first is rounded down, the second is a tie, to even.
  const OwnRows small{1, {1.25, 1, -3}, {1 + 0x1p-9, 1 + 0x1p-8, -2}}, none{2, {}}, large{1, Doubles(40000, 1)};
  EXPECT_EQ(field_of({small, none, large}, Dtype::bf16, tolerances), (std::vector<Doubles>{{1, 0.5, 2}, {0, 0, 0}, {1, 1, 2}}));
  EXPECT_EQ(field_of({small}, Dtype::bf16, {}), (std::vector<Doubles>{{1}}));
  EXPECT_THROW(field_of({small}, Dtype::bf16, std::vector<Tolerance>(kMostTolerances + 1)), std::invalid_argument);
}

TEST(FieldColumns, AreInfiniteWhereOneIsNotFiniteAndTheOtherDiffers) {
  const std::vector<Tolerance> relative{{1, 0}};
  const auto field = [&](double got, double value) { return field_of({{1, {got}, {value}}}, Dtype::fp16, relative).front(); };
  EXPECT_EQ(field(kNoNumber, 1), (Doubles{kInfinity, kInfinity}));
  EXPECT_EQ(field(1, kNoNumber), (Doubles{kInfinity, kInfinity}));
  EXPECT_EQ(field(1, -kInfinity), (Doubles{kInfinity, kInfinity}));
  EXPECT_EQ(field(kNoNumber, kNoNumber)[0], 0);
  EXPECT_EQ(field(kInfinity, 65520), (Doubles{0, 0})) << "what an fp16 has in its place";
  EXPECT_EQ(field(65504, 65520), (Doubles{kInfinity, kInfinity}));
}

}  // namespace
}  // namespace attnbench
