// Layers that believe to run somewhere else: what they refuse, of what they warn, whom they leave a case to; and `auto`.
#include "backends/llama/assumed_place.hpp"

#include <algorithm>
#include <stdexcept>

#include <ATen/ops/equal.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "harness/run/safety.hpp"
#include "harness/run/test_device.hpp"
#include "harness/worker/backend.hpp"
#include "harness/worker/llama_backend.hpp"

namespace attnbench {
namespace {

const Backend& attention_called(const std::string& name) {
  static const auto backends = make_backends(kCpu);
  return **std::ranges::find_if(backends, [&](const auto& b) { return b->declaration().name == name; });
}

const LlamaBackend& named_in(const std::vector<std::unique_ptr<LlamaBackend>>& layers, const std::string& name) {
  return **std::ranges::find_if(layers, [&](const auto& layer) { return layer->declaration().name == name; });
}

const LlamaBackend& faithful(const std::string& name) {
  static const auto layers = make_llama_backends(kCpu, attention_called("flash_varlen"));
  return named_in(layers, name);
}

LlamaOutputs run_placed(const LlamaBackend& layer, const Case& c, Pass pass = Pass::forward) {
  return layer.run(c, make_llama_inputs(c), pass);
}

/// What the layer throws, or "".
std::string refusal_there(const std::string& layer, const std::string& keys, Pass pass = Pass::forward) {
  try {
    run_placed(faithful(layer), parse_case("llama " + keys), pass);
  } catch (const std::invalid_argument& refusal) {
    return refusal.what();
  }
  return "";
}

TEST(AssumedVersion, OfAPastIsComparedAsText) {
  const std::string past = "hq=2 d=8 s=2 past=3 assume_flash_attn=";
  EXPECT_EQ(refusal_there("fastchat_llama2", past + "2.0.9"),
            "a past of 3 tokens: fastchat_llama2 needs flash-attn 2.1.0 or later, and 2.0.9 is less as text");
  EXPECT_EQ(refusal_there("fastchat_llama2", past + "10.0"),
            "a past of 3 tokens: fastchat_llama2 needs flash-attn 2.1.0 or later, and 10.0 is less as text");
  for (const char* taken : {"2.1.0", "2.10.0", "2.8.3"}) EXPECT_EQ(refusal_there("fastchat_llama2", past + taken), "") << taken;
  EXPECT_EQ(refusal_there("fastchat_llama2", "hq=2 d=8 s=2 past=3"), "");
  EXPECT_EQ(refusal_there("fastchat_llama2", "hq=2 d=8 s=2 assume_flash_attn=2.0.9"), "");
  EXPECT_NE(refusal_there("fastchat_llama2", "hq=2 d=8 s=4 chunks=2 assume_flash_attn=2.0.9"), "");
}

TEST(AssumedSm, BelowEightIsWarnedOfByThoseWhoDo) {
  for (const char* sm : {"7.0", "7.5", "8.0", "8.6", "9.0", "12.0"})
    for (const auto& [layer, says] :
         {std::pair("flagembedding", "FlagEmbedding prints"), std::pair("fastchat_llama1", "FastChat warns"),
          std::pair("fastchat_llama2", "FastChat warns")}) {
      const Case c = parse_case(fmt::format("llama hq=2 d=8 s=3 assume_sm={}", sm));
      std::vector<std::string> expected;
      if (sm[0] == '7')
        expected = {fmt::format("{}: in training, flash attention is meant for SM 8.0 and later, and this is SM {}", says, sm)};
      EXPECT_EQ(run_placed(faithful(layer), c).warnings, expected) << layer;
    }
  const Case nowhere = parse_case("llama hq=2 d=8 s=3"), below = parse_case("llama hq=2 d=8 s=3 assume_sm=7.5");
  EXPECT_TRUE(run_placed(faithful("flagembedding"), nowhere).warnings.empty());
  for (const char* layer : {"internvl", "internvl_flash_v1", "internvl_flash_v2", "internvl_sdpa", "hf_eager"})
    EXPECT_TRUE(run_placed(faithful(layer), below).warnings.empty()) << layer;
}

/// Over releases, SMs and head dims a layer throws where the table says so, in the pass of which it says so, and nowhere else.
TEST(AssumedFlashAttn, IsRefusedWhereTheTableSaysSo) {
  int refused = 0, taken = 0;
  for (const char* layer : {"flagembedding", "fastchat_llama2", "internvl_flash_v2", "internvl_llava"})
    for (const char* version : {"1.0.9", "2.5.4", "2.6.1", "2.8.3"})
      for (const int sm : {75, 86, 120})
        for (const int64_t d : {64, 128, 224})
          for (const Pass pass : {Pass::forward, Pass::backward}) {
            const Safety found = safety({sm, d, Dtype::fp16, pass == Pass::backward, false, "flash_attn", version});
            const std::string keys =
                fmt::format("hq=1 d={} s=2 dtype=fp16 assume_flash_attn={} assume_sm={}.{}", d, version, sm / 10, sm % 10);
            const std::string expected = found.verdict == "ok" ? ""
                                                               : fmt::format("flash-attn {} on SM {}.{}: {}: {}", version,
                                                                             sm / 10, sm % 10, found.verdict, found.reason);
            EXPECT_EQ(refusal_there(layer, keys, pass), expected) << layer << ' ' << keys << ' ' << name_of(pass);
            ++(found.verdict == "ok" ? taken : refused);
          }
  EXPECT_GT(refused, 100);
  EXPECT_GT(taken, 50);
}

TEST(AssumedFlashAttn, OfThePackedLayerIsRefusedToo) {
  EXPECT_EQ(refusal_there("internvl_packed", "hq=1 d=8 layout=packed lens=2+3 assume_flash_attn=2.5.4 assume_sm=7.5"),
            "flash-attn 2.5.4 on SM 7.5: refused: runs on SM 8.x and 9.0");
}

/// Name of the layer to which `internvl` leaves a case, and why.
std::pair<std::string, std::string> internvl_takes(const std::string& assumed) {
  const LayerChoice choice = faithful("internvl").choose(parse_case("llama hq=2 d=8 s=3 " + assumed), Pass::forward, kCpu);
  return {choice.layer.declaration().name, choice.why};
}

TEST(InternvlDispatch, TakesSdpaWhereTorchHasItWhateverTheSm) {
  for (const char* assumed :
       {"", "assume_sm=7.0", "assume_sm=8.0 assume_flash_attn=2.8.3", "assume_torch=2.0", "assume_torch=10.1"})
    EXPECT_EQ(internvl_takes(assumed).first, "internvl_sdpa") << assumed;
  EXPECT_EQ(internvl_takes("assume_torch=2.0").second,
            "internvl_sdpa: torch 2.0 has scaled_dot_product_attention, and nothing else is asked");
  EXPECT_EQ(internvl_takes("assume_torch=1.13").first, "internvl_flash_v2");
  EXPECT_EQ(internvl_takes("assume_torch=1.13 assume_flash_attn=2.0.0").first, "internvl_flash_v2");
  EXPECT_EQ(internvl_takes("assume_torch=1.13 assume_flash_attn=1.0.9").first, "internvl_flash_v1");
  EXPECT_EQ(internvl_takes("assume_torch=1.13").second, "internvl_flash_v2: torch 1.13 has no scaled_dot_product_attention");
}

TEST(InternvlDispatch, IsTheLayerThatItTakes) {
  for (const auto& [assumed, taken] : {std::pair("", "internvl_sdpa"), std::pair(" assume_torch=1.13", "internvl_flash_v2")}) {
    const Case c = parse_case(std::string("llama hq=2 d=8 s=9 lens=9+5 pad=left") + assumed);
    EXPECT_TRUE(at::equal(run_placed(faithful("internvl"), c).out, run_placed(faithful(taken), c).out)) << taken;
  }
  EXPECT_FALSE(at::equal(run_placed(faithful("internvl_sdpa"), parse_case("llama hq=2 d=8 s=9 lens=9+5 pad=left")).out,
                         run_placed(faithful("internvl_flash_v2"), parse_case("llama hq=2 d=8 s=9 lens=9+5 pad=left")).out));
}

std::vector<std::unique_ptr<LlamaBackend>> auto_layers(const std::vector<std::string>& candidates,
                                                       std::optional<int> assume_sm = {}) {
  std::vector<const Backend*> attentions;
  for (const std::string& name : candidates) attentions.push_back(&attention_called(name));
  return make_dispatched_layers(kCpu, attentions, assume_sm);
}

const std::vector<std::string> kOfACpu = {"flash_varlen", "sdpa_flash", "sdpa_math", "eager"};

TEST(AutoAttention, IsTheFirstThatIsSafeOnTheSm) {
  const auto here = auto_layers(kOfACpu), on_75 = auto_layers(kOfACpu, 75);
  const auto picked = [](const auto& layers, const std::string& keys, Pass pass = Pass::backward) {
    const LayerChoice choice = named_in(layers, "flagembedding").choose(parse_case("llama hq=2 s=9 " + keys), pass, kCpu);
    EXPECT_TRUE(choice.why.starts_with(choice.layer.attention() + ": ")) << choice.why;
    return choice.layer.attention();
  };
  EXPECT_EQ(picked(here, "d=8"), "flash_varlen");
  EXPECT_EQ(picked(on_75, "d=8"), "sdpa_math");
  EXPECT_EQ(picked(on_75, "d=8 assume_sm=8.0"), "flash_varlen");  // the case's own place comes first
  EXPECT_EQ(picked(here, "d=8 assume_sm=7.5"), "sdpa_math");
  const auto of_torch = auto_layers({"sdpa_flash", "sdpa_math"}, 86);
  EXPECT_EQ(picked(of_torch, "d=224", Pass::forward), "sdpa_flash");
  EXPECT_EQ(picked(of_torch, "d=224", Pass::backward), "sdpa_math");
}

TEST(AutoAttention, ComputesWhatTheOnePickedComputes) {
  const auto on_75 = auto_layers(kOfACpu, 75), over_math = make_llama_backends(kCpu, attention_called("sdpa_math"));
  const Case c = parse_case("llama hq=4 hkv=2 d=8 s=9 lens=5+9 pad=left dtype=fp16");
  const LlamaOutputs got = run_placed(named_in(on_75, "fastchat_llama2"), c, Pass::backward),
                     expected = run_placed(named_in(over_math, "fastchat_llama2"), c, Pass::backward);
  EXPECT_TRUE(at::equal(got.out, expected.out) && at::equal(got.dwk, expected.dwk));
}

TEST(AutoAttention, IsNoMatterForLayersThatCallNothing) {
  const auto layers = auto_layers(kOfACpu, 75);
  EXPECT_EQ(layers.size(), make_llama_backends(kCpu, attention_called("flash_varlen")).size());
  const Case c = parse_case("llama hq=2 d=8 s=9");
  for (const char* name : {"hf_eager", "internvl_sdpa"}) {
    EXPECT_EQ(named_in(layers, name).attention(), "") << name;
    EXPECT_EQ(named_in(layers, name).choose(c, Pass::forward, kCpu).why, "") << name;
  }
  const LayerChoice internvl = named_in(layers, "internvl").choose(c, Pass::forward, kCpu);
  EXPECT_EQ(internvl.layer.declaration().name, "internvl_sdpa");
  EXPECT_EQ(internvl.why.find("safety table"), std::string::npos) << internvl.why;
  const LayerChoice old =
      named_in(layers, "internvl").choose(parse_case("llama hq=2 d=8 s=9 assume_torch=1.13"), Pass::forward, kCpu);
  EXPECT_EQ(old.layer.attention(), "sdpa_math");
  EXPECT_EQ(old.why.find("internvl_flash_v2: torch 1.13"), 0u) << old.why;
}

/// As the dispatcher is told: fastchat_xformers begins its triangle at the first key, internvl_llava repeats key heads.
TEST(AutoAttention, IsAskedForTheCallThatTheLayerMakes) {
  const Case c = parse_case("llama hq=4 hkv=2 d=8 s=4 past=5");
  EXPECT_EQ(faithful("fastchat_xformers").attention_case(c).problem.align, Align::top_left);
  EXPECT_EQ(faithful("fastchat_llama2").attention_case(c).problem.align, Align::bottom_right);
  EXPECT_EQ(faithful("internvl_llava").attention_case(c).problem.hkv, 4);
  EXPECT_EQ(faithful("fastchat_llama2").attention_case(c).problem.hkv, 2);
}

TEST(AutoAttention, BlamesTheAttentionForWhatItLacks) {
  const auto layers = auto_layers(kOfACpu);
  const LayerChoice choice = named_in(layers, "flagembedding").choose(parse_case("llama hq=2 d=512 s=9"), Pass::forward, kCpu);
  EXPECT_NE(choice.why.find("flash_varlen [d=512: flash_varlen takes head dims from 1 to 256]"), std::string::npos) << choice.why;
}

TEST(AutoAttention, LeavesToTheLayerWhatNoneOfThemTakes) {
  const auto layers = auto_layers(kOfACpu, 75);
  const auto why =
      named_in(layers, "flagembedding").why_not(parse_case("llama hq=2 d=8 s=9 switch=enable_class"), Pass::forward, kCpu);
  ASSERT_TRUE(why);
  EXPECT_NE(why->find("flagembedding cannot be switched"), std::string::npos) << *why;
}

TEST(AutoAttention, ThrowsWhereNoneIsSafe) {
  const auto layers = auto_layers({"flash_varlen", "sdpa_flash"}, 75);
  EXPECT_THROW(named_in(layers, "flagembedding").choose(parse_case("llama hq=2 d=8 s=9"), Pass::forward, kCpu),
               std::runtime_error);
}

}  // namespace
}  // namespace attnbench
