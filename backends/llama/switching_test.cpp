// What runs after each sequence of steps, said and computed: flagembedding_switch with the traps of Python's classes and
// instances, attention_switch without.
#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backends/llama/makers.hpp"
#include "harness/run/test_device.hpp"
#include "harness/worker/backend.hpp"
#include "harness/worker/llama_backend.hpp"

namespace attnbench {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr Implementation kOriginal = Implementation::original, kPatched = Implementation::patched;

const Backend& flash() {
  static const auto backends = make_backends(kCpu);
  return **std::ranges::find_if(backends, [](const auto& b) { return b->declaration().name == "flash_varlen"; });
}

LlamaOutputs run_switched(LlamaMaker* make, const Case& c, const LlamaInputs& inputs) {
  return make(kCpu, flash())->run(c, inputs, Pass::backward);
}
LlamaOutputs run_switched(LlamaMaker* make, const std::string& keys) {
  const Case c = parse_case("llama hq=2 d=8 s=9 lens=5+9 " + keys);
  return run_switched(make, c, make_llama_inputs(c));
}

/// Which of the two the layer says that it ran, checked by its numbers; unset: it says one and computes the other.
std::optional<Implementation> what_runs(LlamaMaker* make, const std::string& steps) {
  const Case c = parse_case("llama hq=2 d=8 s=9 lens=5+9 switch=" + steps);
  const LlamaInputs inputs = make_llama_inputs(c);
  const LlamaOutputs got = run_switched(make, c, inputs);
  const LlamaOutputs expected = run_switched(got.ran == kPatched ? make_flagembedding : make_hf_eager, c, inputs);
  const bool equal =
      at::equal(got.out, expected.out) && at::equal(got.dhidden, expected.dhidden) && at::equal(got.dwk, expected.dwk);
  return equal ? got.ran : std::nullopt;
}

struct Steps {
  const char* steps;
  Implementation flagembedding, wanted;
};
constexpr Steps kSteps[] = {
    {"new_instance", kOriginal, kOriginal},
    {"enable_class", kPatched, kPatched},
    {"enable_class+new_instance", kPatched, kPatched},
    {"enable_class+lora_wrap", kPatched, kPatched},
    {"enable_instance", kPatched, kPatched},
    {"enable_instance+new_instance", kOriginal, kOriginal},
    {"enable_instance+lora_wrap", kPatched, kPatched},
    {"lora_wrap+enable_instance", kOriginal, kPatched},
    {"enable_instance+disable_instance", kOriginal, kOriginal},
    {"enable_class+disable_instance", kPatched, kOriginal},
    {"enable_instance+enable_class+disable_instance", kPatched, kOriginal},
    {"enable_instance+lora_wrap+disable_instance", kPatched, kOriginal},
    {"enable_class+disable_class", kPatched, kOriginal},
    {"enable_instance+disable_class", kPatched, kOriginal},
    {"enable_class+disable_class+disable_instance", kOriginal, kOriginal},
    {"enable_class+disable_class+new_instance", kPatched, kOriginal},
    {"enable_class+disable_class+reimport+new_instance", kOriginal, kOriginal},
    {"enable_class+disable_class+reimport+new_instance+enable_instance", kOriginal, kPatched},
    {"disable_class+reimport+new_instance+enable_class", kPatched, kPatched},
};

TEST(FlagembeddingSwitch, RunsWhatPythonWouldBind) {
  for (const Steps& s : kSteps) EXPECT_EQ(what_runs(make_flagembedding_switch, s.steps), s.flagembedding) << s.steps;
}

TEST(AttentionSwitchLayer, RunsWhatWasAskedForLast) {
  for (const Steps& s : kSteps) EXPECT_EQ(what_runs(make_attention_switch, s.steps), s.wanted) << s.steps;
  EXPECT_EQ(what_runs(make_attention_switch, "enable_layer"), kPatched);
  EXPECT_EQ(what_runs(make_attention_switch, "enable_class+disable_layer"), kOriginal);
  EXPECT_EQ(what_runs(make_attention_switch, "enable_layer+disable_class"), kOriginal);
  EXPECT_EQ(what_runs(make_attention_switch, "enable_other_layer"), kOriginal);
  EXPECT_EQ(what_runs(make_attention_switch, "enable_class+disable_other_layer"), kPatched);
}

TEST(FlagembeddingSwitch, WarnsWhereItDoesNothing) {
  const auto warnings = [](const std::string& keys) { return run_switched(make_flagembedding_switch, keys).warnings; };
  EXPECT_THAT(warnings("switch=enable_class+disable_class"), IsEmpty());
  EXPECT_THAT(warnings("switch=lora_wrap+enable_instance"),
              ElementsAre("the model is a PeftModelForCausalLM: nothing is enabled"));
  EXPECT_THAT(warnings("switch=enable_instance+lora_wrap+disable_instance"),
              ElementsAre("the model is a PeftModelForCausalLM: nothing is disabled"));
  EXPECT_THAT(warnings("switch=disable_class+reimport+new_instance+enable_instance"),
              ElementsAre("the model's LlamaForCausalLM is not the one imported before: nothing is enabled"));
  EXPECT_THAT(warnings("switch=lora_wrap+enable_instance+enable_class weights=on"),
              ElementsAre(HasSubstr("nothing is enabled"), "output_attentions: flagembedding returns none"));
}

TEST(FlagembeddingSwitch, RefusesOneLayer) {
  for (const std::string step : {"enable_layer", "enable_other_layer", "disable_layer", "disable_other_layer"}) {
    try {
      run_switched(make_flagembedding_switch, "switch=" + step);
      ADD_FAILURE() << step << ": ran";
    } catch (const std::invalid_argument& refusal) {
      EXPECT_EQ(refusal.what(), "switch=" + step + ": flagembedding_switch takes a model or none, and no single layer");
    }
  }
}

TEST(SwitchedLayers, ReturnTheWeightsOfWhatRuns) {
  for (LlamaMaker* make : {make_flagembedding_switch, make_attention_switch}) {
    EXPECT_TRUE(run_switched(make, "weights=on").weights.defined());
    const LlamaOutputs patched = run_switched(make, "weights=on switch=enable_instance");
    EXPECT_FALSE(patched.weights.defined());
    EXPECT_THAT(patched.warnings, ElementsAre("output_attentions: flagembedding returns none"));
  }
}

/// Else a case of the path that rounds less is held to errors that are not its own.
TEST(LayersOfSeveralPaths, DeclareWhereTheOneThatRunsRounds) {
  struct Path {
    LlamaMaker* make;
    const char* keys;
    std::string profile, calls;
    Conventions::EmptyRow empty_row;
  };
  const auto zero = Conventions::EmptyRow::zero, uniform = Conventions::EmptyRow::uniform;
  const std::string fused = flash().declaration().profile.name;
  for (const auto& [make, keys, profile, calls, empty_row] :
       std::vector<Path>{{make_attention_switch, "switch=enable_class", fused, "flash_varlen", zero},
                         {make_attention_switch, "switch=enable_class+disable_layer", "eager", "", uniform},
                         {make_flagembedding_switch, "switch=enable_class+disable_instance", fused, "flash_varlen", zero},
                         {make_flagembedding_switch, "switch=enable_layer", "eager", "", uniform},
                         {make_fastchat_xformers, "", fused, "flash_varlen", zero},
                         {make_fastchat_xformers, "weights=on", "eager", "", uniform},
                         {make_internvl_sdpa, "", "fp32_inside", "", zero},
                         {make_internvl_sdpa, "train=off", "eager", "", uniform},
                         {make_internvl, "", "fp32_inside", "", zero}}) {
    const auto named = make(kCpu, flash());
    const Case c = parse_case(std::string("llama hq=2 d=64 s=9 lens=5+9 ") + keys);
    const LayerChoice path = named->choose(c, Pass::backward, kCpu);
    EXPECT_EQ(path.layer.declaration().profile.name, profile) << named->declaration().name << " " << keys;
    EXPECT_EQ(path.layer.attention(), calls) << named->declaration().name << " " << keys;
    EXPECT_EQ(path.layer.declaration().conventions.empty_row, empty_row) << named->declaration().name << " " << keys;
    EXPECT_EQ(path.layer.why_not(c, Pass::backward, kCpu), named->why_not(c, Pass::backward, kCpu));
  }
}

TEST(SwitchedLayers, AloneTakeCasesThatSwitch) {
  int switched = 0, fixed = 0;
  const auto attention = make_backends(kCpu);
  for (const auto& layer : make_llama_backends(kCpu, *attention.front())) {
    const std::string name = layer->declaration().name;
    const auto why_not = [&](const char* keys) {
      return layer->why_not(parse_case(std::string("llama hq=2 d=64 s=9 lens=5+9 ") + keys), Pass::forward, kCpu).value_or("");
    };
    const bool can = name == "flagembedding_switch" || name == "attention_switch";
    if (can) {
      EXPECT_EQ(why_not("switch=enable_class runs=patched"), "") << name;
      ++switched;
    } else {
      const std::string that = name == "internvl" ? "internvl_sdpa" : name;  // the layer that it picks
      EXPECT_THAT(why_not("switch=enable_class"), HasSubstr("switch is set: " + that + " cannot be switched"));
      EXPECT_THAT(why_not("runs=original"), HasSubstr("runs is set: " + that + " cannot be switched"));
      ++fixed;
    }
  }
  EXPECT_EQ(switched, 2);
  EXPECT_GE(fixed, 10);
}

}  // namespace
}  // namespace attnbench
