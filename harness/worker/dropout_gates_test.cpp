// Masks of coins pass; each mask that is none is seen by its gate.
#include "harness/worker/dropout_gates.hpp"

#include <functional>
#include <string>

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <gtest/gtest.h>

#include "harness/attention/test_reference.hpp"

namespace attnbench {
namespace {

using namespace judge_test;

constexpr double kFalseAlarms = 1e-6;

DropoutGates gates_of(const std::string& line, const std::function<at::Tensor(const at::Tensor&)>& change, uint64_t seed = 1) {
  const Case c = parse_case(line);
  Inputs inputs = make_inputs(c, Conventions::Poison::nan);
  inputs.kept = change(draw_kept(c.problem, inputs, seed)).contiguous();
  return dropout_gates(c, inputs, Conventions::EmptyRow::zero, kFalseAlarms);
}

DropoutGates right(const std::string& line, uint64_t seed) {
  return gates_of(
      line, [](const at::Tensor& kept) { return kept; }, seed);
}

bool fails(const DropoutGates& gates, const std::string& gate) {
  return gates.gates.at(gate).verdict == Gate::Verdict::fail;
}

TEST(DropoutGates, MasksOfCoinsPass) {
  for (const std::string p : {"0.001", "0.1", "0.5", "0.9", "0.999"})
    for (const std::string shape :
         {"hq=1 lq=1", "hq=4 lq=33 lk=70", "hq=3 lens=40+17+0+64+65 mask=causal layout=padded pad=holes"})
      for (uint64_t seed = 0; seed < 20; ++seed) {
        const DropoutGates gates = right("attention d=8 dropout=" + p + ":1 " + shape, seed);
        EXPECT_EQ(gates.reason, "") << p << " " << shape;
        EXPECT_FALSE(fails(gates, "share"));
      }
}

TEST(DropoutGates, CountWhatSomeQueryReadsAlone) {
  const DropoutGates causal = right("attention hq=2 d=8 lq=10 mask=causal dropout=0.5:1", 1);
  EXPECT_EQ(causal.gates.at("share").n, 2 * 55);
  const auto hidden_dropped = [](const at::Tensor& kept) {  // above the diagonal of each head
    return kept.logical_and(at::ones({64, 64}, at::kBool).tril().unsqueeze(1));
  };
  EXPECT_EQ(gates_of("attention hq=2 d=8 lq=64 mask=causal dropout=0.5:1", hidden_dropped).reason, "");
}

TEST(DropoutGates, AnotherShareIsSeen) {
  const auto inverted = [](const at::Tensor& kept) { return kept.logical_not(); };
  for (const std::string p : {"0.1", "0.9", "0.45"}) {
    const DropoutGates gates = gates_of("attention hq=4 d=8 lq=64 dropout=" + p + ":1", inverted);
    EXPECT_TRUE(fails(gates, "share")) << p;
    EXPECT_EQ(gates.reason.rfind("kept: ", 0), 0u) << gates.reason;
  }
  const auto all = [](const at::Tensor& kept) { return at::ones_like(kept); };
  EXPECT_TRUE(fails(gates_of("attention hq=4 d=8 lq=64 dropout=0.01:1", all), "share")) << "nothing is dropped";
}

struct Copy {
  const char* what;
  const char* line;
  std::function<at::Tensor(const at::Tensor&)> change;  ///< of [tokens, heads, keys]
};

TEST(DropoutGates, EveryKindOfCopyIsSeenAndNamed) {
  const auto repeated = [](int64_t dim, int64_t period) {
    return [dim, period](const at::Tensor& kept) {
      std::vector<at::Tensor> parts(static_cast<size_t>((kept.size(dim) + period - 1) / period), kept.narrow(dim, 0, period));
      return at::cat(parts, dim).narrow(dim, 0, kept.size(dim));
    };
  };
  const auto keys_by_place = [](const at::Tensor& kept) {  // the second sequence of 40 drops as the first
    return at::cat({kept.narrow(0, 0, 40), kept.narrow(0, 0, 40)}, 0);
  };
  const Copy copies[] = {
      {"heads 1", "hq=4 lq=40", repeated(1, 1)},        {"heads 3", "hq=6 lq=40", repeated(1, 3)},
      {"queries 1", "hq=2 lq=40", repeated(0, 1)},      {"queries 64", "hq=2 lq=192 mask=causal", repeated(0, 64)},
      {"keys 1", "hq=2 lq=40", repeated(2, 1)},         {"keys 32", "hq=2 lq=100", repeated(2, 32)},
      {"sequences 1", "hq=2 b=2 lq=40", keys_by_place},
  };
  for (const Copy& copy : copies)
    for (const std::string p : {"0.3", "0.5", "0.7"}) {
      const DropoutGates gates = gates_of(std::string("attention d=8 dropout=") + p + ":1 " + copy.line, copy.change);
      EXPECT_TRUE(fails(gates, "copies")) << copy.what << " " << p;
      EXPECT_EQ(gates.reason.rfind(std::string("kept: ") + copy.what + " apart", 0), 0u)
          << copy.what << " " << p << ": " << gates.reason;
    }
}

TEST(DropoutGates, ComplementsAreSeenAsCopiesAre) {
  const DropoutGates gates = gates_of("attention d=8 hq=2 lq=40 dropout=0.5:1", [](const at::Tensor& kept) {
    return at::cat({kept.narrow(1, 0, 1), kept.narrow(1, 0, 1).logical_not()}, 1);
  });
  EXPECT_TRUE(fails(gates, "copies"));
  EXPECT_FALSE(fails(gates, "share"));
}

TEST(DropoutGates, MasksOfTwoSeedsAreAlikeByChance) {
  for (const std::string p : {"0.1", "0.5", "0.9"})
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const Case c = parse_case("attention hq=3 lens=40+17+0+64+65 d=8 layout=padded pad=holes dropout=" + p + ":1");
      Inputs inputs = make_inputs(c, Conventions::Poison::nan);
      inputs.kept = draw_kept(c.problem, inputs, seed);
      const auto says = [&](const at::Tensor& other) {
        return seed_says_nothing(c, inputs, other, Conventions::EmptyRow::zero, kFalseAlarms);
      };
      EXPECT_EQ(says(draw_kept(c.problem, inputs, seed + 100)), "") << p;
      EXPECT_NE(says(inputs.kept), "") << p;
      EXPECT_NE(says(inputs.kept.logical_not()), "") << p;
    }
}

}  // namespace
}  // namespace attnbench
