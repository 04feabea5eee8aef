// Norms, adapters, int8 weights and strides of a layer's tensors: what each layer computes is what the reference says, every
// gradient included, and float32 does not reach flash-attn.
#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backends/llama/layer.hpp"
#include "harness/run/test_device.hpp"
#include "harness/worker/backend.hpp"
#include "harness/worker/lent_layer.hpp"
#include "harness/worker/llama_backend.hpp"
#include "harness/worker/llama_verdict.hpp"
#include "harness/worker/test_calibration.hpp"

namespace attnbench {
namespace {

using at::Tensor;
using testing::StartsWith;

const Backend& flash() {
  static const auto backends = make_backends(kCpu);
  return **std::ranges::find_if(backends, [](const auto& b) { return b->declaration().name == "flash_varlen"; });
}

/// Every layer over flash_varlen.
const LlamaBackend& layer(const std::string& name) {
  static const auto layers = make_llama_backends(kCpu, flash());
  return **std::ranges::find_if(layers, [&](const auto& one) { return one->declaration().name == name; });
}

/// One case for several layers, which share a reference where they round alike.
class Judged {
 public:
  explicit Judged(const std::string& line) : c(parse_case(line)), in(make_llama_inputs(c)) {}

  Verdict verdict(const std::string& name, const LlamaOutputs& outputs) {
    const Profile& profile = layer(name).declaration().profile;
    if (!references_.contains(profile.name)) references_[profile.name] = make_layer_reference(c, in, {}, profile, Pass::backward);
    return judge_layer(outputs, Pass::backward, {c, in, references_.at(profile.name), judge_test::formula_alone()});
  }
  Verdict verdict(const std::string& name) { return verdict(name, layer(name).run(c, in, Pass::backward)); }

  const Case c;
  const LlamaInputs in;

 private:
  std::map<std::string, LayerReference> references_;
};

const char* const kDense[] = {"hf_eager",          "flagembedding",     "fastchat_llama1", "fastchat_llama2",
                              "internvl_flash_v1", "internvl_flash_v2", "internvl_llava"};
const char* const kCallsFlash[] = {"flagembedding",     "fastchat_llama1",   "fastchat_llama2",
                                   "internvl_flash_v1", "internvl_flash_v2", "internvl_llava"};

TEST(LayerTensors, OfEveryKindAreComputedAsTheReferenceSays) {
  const std::string shape = "llama hq=2 d=32 s=16 lens=16+11 ";
  for (const std::string keys :
       {"norm=same lora=4 strides=transposed", "norm=fp32 cast=norms qk_norm=on",
        "norm=fp32 lora=4 lora_dtype=fp32 cast=norms_and_adapters dtype=fp16", "int8=on lora=4 positions=none"}) {
    Judged judged(shape + keys);
    for (const std::string name : kDense) {
      ASSERT_FALSE(layer(name).why_not(judged.c, Pass::backward, kCpu)) << name << ": " << keys;
      const Verdict got = judged.verdict(name);
      EXPECT_EQ(got.status, Status::passed) << name << ": " << keys << ": " << got.reason;
    }
  }
}

/// A cache of rotated keys, in calls one after the other: the gradients of norms and adapters add up over them.
TEST(LayerTensors, OfChunksAreThoseOfOneCall) {
  Judged judged("llama hq=4 hkv=2 d=32 s=16 past=8 chunks=4 cache=on norm=same lora=4 qk_norm=on");
  for (const std::string name : {"hf_eager", "fastchat_llama2"}) {
    const Verdict got = judged.verdict(name);
    EXPECT_EQ(got.status, Status::passed) << name << ": " << got.reason;
  }
}

/// float32 behind a float32 norm, where nothing refuses it: out too.
TEST(LayerTensors, OfAnEagerLayerArePromoted) {
  for (const std::string keys : {"norm=fp32 lora=4 lora_dtype=fp32", "norm=fp32 lora=4 int8=on"}) {
    Judged judged("llama hq=2 d=32 s=16 cache=on " + keys);
    const LlamaOutputs out = layer("hf_eager").run(judged.c, judged.in, Pass::backward);
    EXPECT_EQ(out.out.scalar_type(), at::kFloat);
    EXPECT_EQ(out.dhidden.scalar_type(), at::kBFloat16);
    EXPECT_EQ(out.dnorm.scalar_type(), at::kFloat);
    const Verdict got = judged.verdict("hf_eager", out);
    EXPECT_EQ(got.status, Status::passed) << keys << ": " << got.reason;
  }
}

/// Four tokens: sigma is an estimate, of dwk two dozen errors are independent, and D has the error of O, however small dP is
/// (seed 45). Limits that do not know it accuse.
TEST(LayerTensors, OfFewTokensAreNotAccused) {
  for (const std::string keys : {"d=128 s=8 lens=4 seed=1", "d=64 s=3 seed=2", "d=64 s=8 lens=4 dtype=fp16 seed=45"}) {
    Judged judged("llama hq=2 " + keys);
    for (const std::string name : {"hf_eager", "flagembedding", "fastchat_llama2", "internvl_flash_v1"}) {
      const Verdict got = judged.verdict(name);
      EXPECT_EQ(got.status, Status::passed) << name << ": " << keys << ": " << got.reason;
    }
  }
}

std::string refusal(const std::string& name, const std::string& keys) {
  const Case c = parse_case("llama hq=2 d=64 s=8 " + keys);
  try {
    layer(name).run(c, make_llama_inputs(c), Pass::forward);
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
  return "";
}

TEST(FlashDtypes, OfFloat32AreRefusedWhereverItComesFrom) {
  const std::string sentence = "flash-attn takes fp16 and bf16, and the queries are fp32";
  for (const std::string name : kCallsFlash) {
    for (const std::string keys : {"dtype=fp32", "norm=fp32", "lora=4 lora_dtype=fp32", "norm=fp32 lora=4 cast=none",
                                   "norm=fp32 lora=4 lora_dtype=fp32 cast=norms", "norm=fp32 int8=on"})
      EXPECT_EQ(refusal(name, keys), sentence) << name << ": " << keys;
    for (const std::string keys : {"norm=fp32 cast=norms", "norm=fp32 lora=4 lora_dtype=fp32 cast=norms_and_adapters"})
      EXPECT_EQ(refusal(name, keys), "") << name << ": " << keys;
  }
}

/// As of the layer around it, which casts float32 states back, and warns: what it computes then has a Semantics of its own.
TEST(FlashDtypes, OfPackedTrainingAreCastBack) {
  const LlamaBackend& packed = layer("internvl_packed");
  for (const std::string keys : {"norm=fp32 dtype=bf16", "norm=fp32 dtype=fp16 lora=4", "lora=4 lora_dtype=fp32 int8=on"}) {
    const Case c = parse_case("llama hq=2 d=64 lens=5+3 layout=packed " + keys);
    const LlamaInputs in = make_llama_inputs(c);
    const LlamaOutputs out = packed.run(c, in, Pass::backward);
    EXPECT_EQ(out.warnings.size(), 1u);
    EXPECT_THAT(out.warnings.at(0), StartsWith("the states were silently cast to float32"));
    EXPECT_EQ(out.out.scalar_type(), in.hidden.scalar_type());
    const auto verdict = [&](const Semantics& semantics) {
      const LayerReference reference = make_layer_reference(c, in, semantics, packed.declaration().profile, Pass::backward);
      return judge_layer(out, Pass::backward, {c, in, reference, judge_test::formula_alone(), false, semantics});
    };
    const Verdict as_cast = verdict({.casts_back = true}), as_asked = verdict({});
    EXPECT_EQ(as_cast.status, Status::passed) << keys << ": " << as_cast.reason;
    EXPECT_THAT(as_asked.reason, testing::HasSubstr("expected fp32")) << keys;
    EXPECT_FALSE(as_asked.malformed) << keys;
  }
  const Case narrow = parse_case("llama hq=2 d=64 lens=5+3 layout=packed norm=same");
  EXPECT_TRUE(packed.run(narrow, make_llama_inputs(narrow), Pass::forward).warnings.empty());
  const Case wide = parse_case("llama hq=2 d=64 lens=5+3 layout=packed dtype=fp32");
  EXPECT_THROW(packed.run(wide, make_llama_inputs(wide), Pass::forward), std::invalid_argument);
}

/// xformers takes float32, but no mixture: nor does the call that stands for it.
TEST(FlashDtypes, DoNotConcernXformersWhichTakesOneDtype) {
  EXPECT_EQ(refusal("fastchat_xformers", "dtype=fp32 mask=on"), "");
  EXPECT_THAT(refusal("fastchat_xformers", "lora=4 lora_dtype=fp32 mask=on"),
              StartsWith("attention of Float queries, BFloat16 keys and Float values"));
}

TEST(LayerStrides, OfStatesAreNotContiguousAndChangeNoBit) {
  const Case rows = parse_case("llama hq=2 d=64 s=16 lens=16+11"),
             transposed = parse_case("llama hq=2 d=64 s=16 lens=16+11 strides=transposed");
  const LlamaInputs in = make_llama_inputs(rows), view = make_llama_inputs(transposed);
  EXPECT_FALSE(view.hidden.is_contiguous() || view.dout.is_contiguous());
  EXPECT_FALSE(LentInputs(view, false, at::kCPU).lent.hidden.is_contiguous());
  EXPECT_TRUE(at::equal(in.hidden, view.hidden) && at::equal(in.dout, view.dout));
  EXPECT_EQ(layer("flagembedding").why_not(parse_case("llama hq=2 d=64 s=16 strides=stride0"), Pass::forward, kCpu).value_or(""),
            "strides=stride0: flagembedding takes contiguous, transposed");
}

/// flash_varlen, which notes how many of Q, K and V it gets as views, and may declare that it takes none, or read them as if they
/// were none.
class ViewedAttention : public Backend {
 public:
  enum class Kind { right, takes_no_views, ignores_strides };
  explicit ViewedAttention(Kind kind) : kind_(kind), declaration_(flash().declaration()) {
    if (kind == Kind::takes_no_views) declaration_.capabilities.strides = {Strides::contiguous};
  }
  const Declaration& declaration() const override { return declaration_; }
  Run prepare(const Case& c, const Inputs& inputs, Pass pass) const override {
    views = 0;
    for (Tensor Inputs::*tensor : {&Inputs::q, &Inputs::k, &Inputs::v}) views += !(inputs.*tensor).is_contiguous();
    if (kind_ != Kind::ignores_strides) return flash().prepare(c, inputs, pass);
    read_ = inputs;
    for (Tensor Inputs::*tensor : {&Inputs::q, &Inputs::k, &Inputs::v}) {
      const Tensor& x = inputs.*tensor;
      read_.*tensor = x.as_strided(x.sizes(), {x.size(1) * x.size(2), x.size(2), 1});
    }
    return flash().prepare(c, read_, pass);
  }
  mutable int views = 0;

 private:
  Kind kind_;
  Declaration declaration_;
  mutable Inputs read_;
};

/// Q, K and V of a layer that stacks them are views, which an attention that takes such strides gets as they are.
TEST(LayerStrides, OfStackedTensorsReachTheAttentionThatTakesThem) {
  using Kind = ViewedAttention::Kind;
  Judged judged("llama hq=2 d=64 s=24 lens=13+24 strides=transposed");
  const auto over = [&](const Backend& attention, const std::string& name) {
    const auto layers = make_llama_backends(kCpu, attention);
    const auto found = std::ranges::find_if(layers, [&](const auto& one) { return one->declaration().name == name; });
    return (*found)->run(judged.c, judged.in, Pass::backward);
  };
  const std::pair<const char*, int> views[] = {{"flagembedding", 3},     {"fastchat_llama1", 3}, {"fastchat_llama2", 2},
                                               {"internvl_flash_v2", 3}, {"internvl_llava", 3},  {"fastchat_xformers", 0}};
  for (const auto& [name, expected] : views) {
    const ViewedAttention right(Kind::right), takes_none(Kind::takes_no_views), ignores(Kind::ignores_strides);
    const LlamaOutputs viewed = over(right, name), copied = over(takes_none, name);
    EXPECT_EQ(right.views, expected) << name;
    EXPECT_EQ(takes_none.views, 0) << name;
    EXPECT_TRUE(at::equal(viewed.out, copied.out) && at::equal(viewed.dwk, copied.dwk)) << name;
    const Verdict verdict = judged.verdict(name, over(ignores, name));
    EXPECT_EQ(verdict.status, expected == 0 ? Status::passed : Status::failed) << name << ": " << verdict.reason;
  }
}

TEST(Int8Weights, HaveNoGradient) {
  const Case c = parse_case("llama hq=2 d=64 s=8 int8=on lora=4");
  const LlamaOutputs out = layer("hf_eager").run(c, make_llama_inputs(c), Pass::backward);
  EXPECT_FALSE(out.dwq.defined() || out.dwk.defined() || out.dwv.defined() || out.dwo.defined());
  EXPECT_TRUE(out.dhidden.defined() && out.dlora_qa.defined());
}

/// Half a step of 127 at most from what was drawn, and the scale's own rounding.
TEST(Int8Weights, AreNearThoseDrawn) {
  const Case plain = parse_case("llama hq=2 d=64 s=8"), quantised = parse_case("llama hq=2 d=64 s=8 int8=on");
  const Tensor w = make_llama_inputs(plain).wk.to(at::kDouble);
  const LlamaInputs in = make_llama_inputs(quantised);
  EXPECT_EQ(in.wk.scalar_type(), at::kChar);
  EXPECT_EQ(in.wk.abs().amax(1).min().item<int>(), 127);
  const Tensor scale = in.wk_scale.to(at::kDouble).unsqueeze(1);
  EXPECT_LE(((in.wk.to(at::kDouble) * scale - w).abs() / scale).max().item<double>(), 0.5 + 127 * 0x1p-8);
}

}  // namespace
}  // namespace attnbench
