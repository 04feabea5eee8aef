// Defects of the dropout of real backends: masks that are not random, or not those that the outputs were computed with.
#include <algorithm>
#include <functional>
#include <memory>

#include <ATen/ops/mul.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/worker/test_defective.hpp"

namespace attnbench::defects_test {
namespace {

/// The mask of the real backend, and what `of` says of another case computed on the same inputs.
Prepare handing_out_the_right_mask(std::function<void(Case&)> change, std::vector<at::Tensor Outputs::*> of) {
  return [change, of](const Backend& real, const Case& c, const Inputs& inputs, Pass pass) {
    Case other_case = c;
    change(other_case);
    const auto other = std::make_shared<Run>(real.prepare(other_case, inputs, pass));
    Run run = real.prepare(c, inputs, pass);
    Window& window = run.windows.back();
    for (auto [call, others] : {std::pair{&window.forward, &Window::forward}, std::pair{&window.backward, &Window::backward}})
      *call = [of, other, others, right = *call] {
        Outputs outputs = right();
        const Outputs wrong = (other->windows.back().*others)();
        for (at::Tensor Outputs::*tensor : of)
          if ((outputs.*tensor).defined()) outputs.*tensor = wrong.*tensor;
        return outputs;
      };
    return run;
  };
}

/// Another mask in every call.
Prepare seeded_by_the_clock() {
  return [](const Backend& real, const Case& c, const Inputs& inputs, Pass pass) {
    const auto now = std::make_shared<Run>(real.prepare(c, inputs, pass));
    const auto ticks = std::make_shared<uint64_t>(c.problem.dropout.seed);
    Run run = *now;
    run.windows.back().forward = [&real, &inputs, c, pass, now, ticks] {
      Case next = c;
      next.problem.dropout.seed = (*ticks)++;
      *now = real.prepare(next, inputs, pass);
      return now->windows.back().forward();
    };
    run.windows.back().backward = [now] { return now->windows.back().backward(); };
    return run;
  };
}

std::vector<Defect> dropout_defects() {
  const std::vector<Pass> both = {Pass::forward, Pass::backward};
  const auto of_mask = [](std::function<at::Tensor(const at::Tensor&)> change) {
    return tamper([change](Outputs& outputs, const Inputs&) {
      if (outputs.kept.defined()) outputs.kept = change(outputs.kept);
    });
  };
  const auto no_dropout = [](Case& c) { c.problem.dropout = {}; };
  const auto other_seed = [](Case& c) { c.problem.dropout.seed += 1; };
  const auto complement = [](Case& c) { c.problem.dropout.p = 1 - c.problem.dropout.p; };
  return {
      {"the mask handed out and never applied", both, by_gate_of("o"),
       handing_out_the_right_mask(no_dropout, {&Outputs::o, &Outputs::dq, &Outputs::dk, &Outputs::dv})},
      {"1 / (1 - p) missing", both, by_gate_of("o"), tamper([](Outputs& outputs, const Inputs&) {
         for (at::Tensor* t : {&outputs.o, &outputs.dv})
           if (t->defined()) *t = at::mul(*t, 0.7);
       })},
      {"1 / (1 - p) missing in dv", {Pass::backward}, by_gate_of("dv"), tamper([](Outputs& outputs, const Inputs&) {
         if (outputs.dv.defined()) outputs.dv = at::mul(outputs.dv, 0.7);
       })},
      {"a backward that drops by another mask",
       {Pass::backward},
       by_gate_of("dq"),
       handing_out_the_right_mask(other_seed, {&Outputs::dq, &Outputs::dk, &Outputs::dv})},
      {"a backward that drops nothing",
       {Pass::backward},
       by_gate_of("dq"),
       handing_out_the_right_mask(no_dropout, {&Outputs::dq, &Outputs::dk, &Outputs::dv})},
      {"dv without the mask", {Pass::backward}, by_gate_of("dv"), handing_out_the_right_mask(no_dropout, {&Outputs::dv})},
      {"p kept, not 1 - p", both, "^kept: .* share of 0.[23].*, expected 0.7", instead(complement)},
      {"the mask the wrong way round", both, "^kept: .*, expected 0.7",
       of_mask([](const at::Tensor& kept) { return kept.logical_not(); })},
      {"one head's mask handed out for another's", both, by_gate_of("o"),
       of_mask([](const at::Tensor& kept) { return kept.flip({-2}); })},
      {"no mask handed out", both, "^kept is missing", of_mask([](const at::Tensor&) { return at::Tensor(); })},
      {"a mask of another shape", both, "^kept has the shape",
       of_mask([](const at::Tensor& kept) { return kept.narrow(-1, 1, 3); })},
      {"one mask for every seed", both, "^kept: with another seed .* kept or dropped as before, a share of 1, expected 0.58",
       instead([](Case& c) { c.problem.dropout.seed = 42; })},
      {"a mask of its own in every call", both, "kept: another mask than that of an earlier call", seeded_by_the_clock()},
  };
}

TEST(Dropout, DefectsOfMasksAreCaughtAndTheBackendsWithoutThemPass) {
  for (const char* name : {"eager", "eigen"})
    for (const char* dtype : {"bf16", "fp16", "fp32"})
      for (const Pass pass : {Pass::forward, Pass::backward}) {
        std::vector<Defect> defects;
        for (const Defect& defect : dropout_defects())
          if (std::count(defect.passes.begin(), defect.passes.end(), pass)) defects.push_back(defect);
        expect_caught(name,
                      fmt::format("attention b=2 hq=4 hkv=2 lq=40 lk=56 d=32 dtype={} mask=causal dropout=0.3:5 seed=3", dtype),
                      pass, defects);
      }
}

TEST(Dropout, AnotherMaskInTheOtherPassIsSeen) {
  const auto by_pass = [](const Backend& real, const Case& c, const Inputs& inputs, Pass pass) {
    Case other = c;
    other.problem.dropout.seed += pass == Pass::backward;
    return real.prepare(other, inputs, pass);
  };
  Bench bench{{"cpu", 0, std::nullopt, "test"}, {}, judge_test::calibration_of_cpu()};
  bench.backends.push_back(std::make_unique<Defective>(real_backend("eigen"), Defect{"a mask for each pass", {}, "", by_pass}));
  const std::string name = bench.backends.back()->declaration().name;
  Request request{1, "attention hq=4 hkv=2 lq=40 d=32 dropout=0.3:5", {{name, Pass::forward}, {name, Pass::backward}}, true};
  std::vector<Record> records;
  run_case(request, bench, {[](const Stage&) {}, [&](const Record& r) { records.push_back(r); }, [](const Comparison&) {}});
  EXPECT_EQ(records.at(0).status, Status::passed) << records.at(0).reason;
  EXPECT_EQ(records.at(1).status, Status::failed);
  EXPECT_THAT(records.at(1).reason, testing::HasSubstr("the mask of its other pass is another one"));
}

/// All P are 1/56 here; dS of the keys that query 1 of head 10 does not keep, 0.0647, lies at a tie, and all of them take the
/// same side.
TEST(Dropout, EqualGradientsOfDroppedKeysRoundTogether) {
  const std::string line = "attention b=2 hq=16 hkv=1 d=192 lq=32 lk=56 dropout=0.9:12281721 fill=deep_negative seed=36237";
  expect_caught("eager", line, Pass::backward, {});
}

/// The timed calls, and those after them, drop by the mask that was judged.
TEST(Dropout, PassesWhenItIsTimed) {
  for (const char* name : {"eager", "eigen"}) {
    Bench bench{{"cpu", 0, std::nullopt, "test"}, {}, judge_test::calibration_of_cpu()};
    const Defect nothing{"nothing", {}, "", instead([](Case&) {})};
    bench.backends.push_back(std::make_unique<Defective>(real_backend(name), nothing));
    const std::string planted = bench.backends.back()->declaration().name;
    const std::string line = "attention hq=4 hkv=2 lens=40+17 d=32 layout=padded mask=causal dropout=0.3:5";
    Request request{1, line, {{planted, Pass::forward}, {planted, Pass::backward}}};
    bench.measuring.time_budget_s = 0.05;
    std::vector<Record> records;
    run_case(request, bench, {[](const Stage&) {}, [&](const Record& r) { records.push_back(r); }, [](const Comparison&) {}});
    for (const Record& record : records) {
      EXPECT_EQ(record.status, Status::passed) << name << ": " << record.reason;
      EXPECT_TRUE(record.time) << name;
    }
  }
}

}  // namespace
}  // namespace attnbench::defects_test
