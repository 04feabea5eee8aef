// The band of reference runs: what is inside, what leaves it, and how wide it is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "harness/run/draws.hpp"
#include "harness/worker/training_band.hpp"

namespace attnbench {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr int kSteps = 60;
constexpr double kSpread = 1e-3;

/// Sum of twelve uniform numbers less six: nearly normal, deviation 1.
double nearly_normal(Draws& draws) {
  double sum = -6;
  for (int i = 0; i < 12; ++i) sum += static_cast<double>(draws.bits() >> 11) / std::ldexp(1.0, 53);
  return sum;
}

/// A loss that falls and a norm that rises, each off by kSpread of itself at random.
Curves curves_of_run(uint64_t seed) {
  Draws draws(seed, 7);
  Curves curves;
  for (int step = 0; step < kSteps; ++step) {
    curves["loss"].push_back(5 / (1 + 0.1 * step) * (1 + kSpread * nearly_normal(draws)));
    curves["wk"].push_back((0.1 + 0.01 * step) * (1 + kSpread * nearly_normal(draws)));
  }
  return curves;
}

Band band_of_eight() {
  std::vector<Curves> runs;
  for (uint64_t seed = 1; seed <= 8; ++seed) runs.push_back(curves_of_run(seed));
  return band_of(runs);
}

TEST(Band, IsAsWideAsTheRunsAreApart) {
  const Band band = band_of_eight();
  for (const auto& [name, deviation] : band.deviation)
    for (size_t step = 0; step < deviation.size(); ++step)
      EXPECT_NEAR(deviation[step] / band.mean.at(name)[step], kSpread * std::sqrt(1 + 1 / 8.0), 0.35 * kSpread) << name << step;
  EXPECT_GT(band.limit, 9);
  EXPECT_LT(band.limit, 10);
  const Curves low = low_edge(band), high = high_edge(band);
  EXPECT_NEAR(high.at("wk")[9] - low.at("wk")[9], 2 * band.limit * band.deviation.at("wk")[9], 1e-12);
}

TEST(Band, HoldsFurtherRunsAndNotOneThatIsOffAtOneStep) {
  const Band band = band_of_eight();
  for (uint64_t seed = 100; seed < 400; ++seed) EXPECT_THAT(judge_curves(curves_of_run(seed), band).reason, IsEmpty()) << seed;
  Curves off = curves_of_run(9);
  off["wk"][17] *= 1 + 16 * kSpread;
  const BandVerdict verdict = judge_curves(off, band);
  EXPECT_THAT(verdict.reason, HasSubstr("wk leaves the band at step 18"));
  EXPECT_EQ(verdict.gates.at("wk").verdict, Gate::Verdict::fail);
  EXPECT_EQ(verdict.gates.at("loss").verdict, Gate::Verdict::pass);
}

TEST(Band, IsLeftByWhatIsNoNumber) {
  Curves nan = curves_of_run(9);
  nan["loss"].back() = NAN;
  EXPECT_EQ(judge_curves(nan, band_of_eight()).gates.at("loss").verdict, Gate::Verdict::fail);
}

}  // namespace
}  // namespace attnbench
