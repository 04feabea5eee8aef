// The harness proves that it can fail: defects planted in the real flash_varlen and in the real eager, each of which
// must be seen, while the same backends without a defect pass the same case.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>

#include <ATen/ops/div.h>
#include <ATen/ops/mul.h>
#include <gtest/gtest.h>

#include "harness/worker/test_defective.hpp"

namespace attnbench::defects_test {
namespace {

/// A gradient that sees dO of the first query head of each group only.
Prepare of_one_group_head(at::Tensor Outputs::*gradient) {
  return [gradient](const Backend& real, const Case& c, const Inputs& inputs, Pass pass) {
    const auto narrowed = std::make_shared<Inputs>(inputs);
    narrowed->dout = inputs.dout.clone();
    for (int64_t head = 0; head < c.problem.hq; ++head)
      if (head % c.problem.group() != 0) narrowed->dout.select(-2, head).zero_();
    const auto narrow = std::make_shared<Run>(real.prepare(c, *narrowed, pass));
    Run run = real.prepare(c, inputs, pass);
    for (Window& window : run.windows)
      window.backward = [gradient, narrowed, narrow, right = window.backward] {
        Outputs outputs = right();
        narrow->windows.back().forward();
        outputs.*gradient = narrow->windows.back().backward().*gradient;
        return outputs;
      };
    return run;
  };
}

/// The last sequence (padding on the right) taken to have one key more than it has.
Prepare with_a_padded_key() {
  return [](const Backend& real, const Case& c, const Inputs& inputs, Pass pass) {
    const auto longer = std::make_shared<Inputs>(inputs);
    const auto sequence = static_cast<int64_t>(inputs.lengths.k.size()) - 1;
    longer->k_rows.push_back(sequence * inputs.lengths.k_pitch + longer->lengths.k.back()++);
    longer->cu_k = inputs.cu_k.clone();
    longer->cu_k.select(0, sequence + 1).add_(1);
    const auto run = std::make_shared<Run>(real.prepare(c, *longer, pass));
    Run kept = *run;
    for (Window& window : kept.windows)
      for (std::function<Outputs()>* call : {&window.forward, &window.backward})
        if (*call) *call = [longer, run, original = *call] { return original(); };
    return kept;
  };
}

char* storage_bytes(const at::Tensor& t) {
  return static_cast<char*>(t.storage().mutable_data());
}

/// Rows are tokens: [token, head, channel].
at::Tensor last_row(const at::Tensor& t) {
  return t.select(0, t.size(0) - 1);
}

std::vector<Defect> tensor_defects(const std::string& name, at::Tensor Outputs::*tensor, Pass pass) {
  const auto change = [tensor](std::function<void(const at::Tensor&)> edit) {
    return tamper([tensor, edit](Outputs& outputs, const Inputs&) {
      if ((outputs.*tensor).defined()) edit(outputs.*tensor);
    });
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  return {
      {"a wrong element in " + name, {pass}, by_gate_of(name), change([](const at::Tensor& t) {
         t.select(0, 5).select(0, 1).select(0, 3).neg_();
       })},
      {"a NaN in " + name, {pass}, by_gate_of(name), change([nan](const at::Tensor& t) {
         t.select(0, 7).select(0, 0).select(0, 2).fill_(nan);
       })},
      {"the last row of " + name + " unwritten", {pass}, by_gate_of(name), change([nan](const at::Tensor& t) {
         last_row(t).fill_(nan);
       })},
      {"the last row of " + name + " zero", {pass}, by_gate_of(name), change([](const at::Tensor& t) { last_row(t).zero_(); })},
  };
}

std::vector<Defect> memory_defects(const std::string& written, at::Tensor Outputs::*tensor, Pass pass) {
  return {
      {"its input overwritten", {pass}, "wrote to its input v", tamper([](Outputs&, const Inputs& inputs) {
         storage_bytes(inputs.v)[1] ^= 1;
       })},
      {"a write past the end of " + written,
       {pass},
       "past the end of its output " + written,
       tamper([tensor](Outputs& outputs, const Inputs&) {
         const at::Tensor& t = outputs.*tensor;
         if (t.defined()) std::memset(storage_bytes(t) + t.storage().nbytes(), 0, 2);
       })},
  };
}

std::vector<Defect> all_defects(const Capabilities& can) {
  const std::vector<Pass> both = {Pass::forward, Pass::backward};
  std::vector<Defect> defects = {
      {"the causal mask aligned to the other corner", both, "gate", instead([](Case& c) { c.problem.align = Align::top_left; })},
      {"no mask", both, "gate", instead([](Case& c) { c.problem.mask = Mask::none; })},
      {"dq without the scale", {Pass::backward}, by_gate_of("dq"), tamper([](Outputs& outputs, const Inputs& inputs) {
         if (outputs.dq.defined()) outputs.dq = at::div(outputs.dq, inputs.scale);
       })},
      {"dk of one head of the group", {Pass::backward}, by_gate_of("dk"), of_one_group_head(&Outputs::dk)},
      {"dv of one head of the group", {Pass::backward}, by_gate_of("dv"), of_one_group_head(&Outputs::dv)},
  };
  const auto append = [&](std::vector<Defect> more) { defects.insert(defects.end(), more.begin(), more.end()); };
  append(tensor_defects("o", &Outputs::o, Pass::forward));
  append(tensor_defects("dq", &Outputs::dq, Pass::backward));
  append(tensor_defects("dk", &Outputs::dk, Pass::backward));
  append(tensor_defects("dv", &Outputs::dv, Pass::backward));
  append(memory_defects("o", &Outputs::o, Pass::forward));
  append(memory_defects("dk", &Outputs::dk, Pass::backward));
  // What only some backends can show.
  if (can.window)
    defects.push_back({"the causal mask one key late", both, "gate", instead([](Case& c) {
                         c.problem.mask = Mask::none;
                         c.problem.window = SlidingWindow{-1, 1};
                       })});
  if (can.returns_lse)
    defects.push_back({"lse in log2 units", {Pass::forward}, by_gate_of("lse"), tamper([](Outputs& outputs, const Inputs&) {
                         if (outputs.lse.defined()) outputs.lse = at::mul(outputs.lse, 1 / std::log(2.0));
                       })});
  return defects;
}

class PlantedDefects : public testing::TestWithParam<std::tuple<const char*, Dtype, Pass>> {};

TEST_P(PlantedDefects, AreCaughtAndTheBackendWithoutThemPasses) {
  const auto [name, dtype, pass] = GetParam();
  const std::string line =
      "attention b=2 hq=4 hkv=2 lq=40 lk=56 d=32 dtype=" + std::string(name_of(dtype)) + " mask=causal seed=3";
  std::vector<Defect> defects;
  for (const Defect& defect : all_defects(real_backend(name).declaration().capabilities))
    if (std::count(defect.passes.begin(), defect.passes.end(), pass)) defects.push_back(defect);
  expect_caught(name, line, pass, defects);
}

TEST(Poison, APaddedKeyThatIsReadShows) {
  const std::string line = "attention hq=4 hkv=2 lens=40+17 klens=193+65 d=32 layout=padded seed=5";
  for (const char* name : {"flash_varlen", "eager"})
    for (Pass pass : {Pass::forward, Pass::backward})
      expect_caught(name, line, pass, {{"a padded key read", {pass}, "gate", with_a_padded_key()}});
}

TEST(Poison, APaddedRowLeftUnwrittenShows) {
  const auto unwritten = [](at::Tensor Outputs::*tensor) {
    return tamper([tensor](Outputs& outputs, const Inputs&) {
      const at::Tensor& t = outputs.*tensor;
      if (t.defined() && t.dim() == 4) t.select(0, 1).select(0, t.size(1) - 1).fill_(std::nan(""));
    });
  };
  const std::string line = "attention hq=4 hkv=2 lens=40+17 klens=193+65 d=32 layout=padded seed=5";
  expect_caught("flash_varlen", line, Pass::forward,
                {{"a padded row of o unwritten", {}, "o: a padded row must be 0", unwritten(&Outputs::o)}});
  for (const auto& [name, tensor] : {std::pair{"dq", &Outputs::dq}, std::pair{"dk", &Outputs::dk}, std::pair{"dv", &Outputs::dv}})
    expect_caught("flash_varlen", line, Pass::backward,
                  {{"a padded row unwritten", {}, std::string(name) + ": a padded row must be 0", unwritten(tensor)}});
}

/// Keys 40 to 55 are seen by no query: they hold NaN, and 0 * NaN is NaN.
TEST(Poison, AnUnseenValueMultipliedByZeroShows) {
  const auto multiplied = tamper([](Outputs& outputs, const Inputs& inputs) {
    if (outputs.o.defined()) outputs.o.select(0, 3).add_(inputs.v.select(0, 50).repeat_interleave(2, 0).mul(0));
  });
  expect_caught("flash_varlen", "attention hq=4 hkv=2 lq=40 lk=56 d=32 mask=causal align=top_left", Pass::forward,
                {{"an unseen value times 0", {}, "o: gate nonfinite", multiplied}});
}

INSTANTIATE_TEST_SUITE_P(Backends, PlantedDefects,
                         testing::Combine(testing::Values("flash_varlen", "eager"),
                                          testing::Values(Dtype::bf16, Dtype::fp16, Dtype::fp32),
                                          testing::Values(Pass::forward, Pass::backward)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_" + std::string(name_of(std::get<1>(info.param))) +
                                  "_" + std::string(name_of(std::get<2>(info.param)));
                         });

}  // namespace
}  // namespace attnbench::defects_test
