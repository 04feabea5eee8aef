// Which parameters each script casts before flash-attn, by the names that they have in Hugging Face's models.
#include "backends/llama/upcast_for_flash.hpp"

#include <set>

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace attnbench {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

const std::string kLayer = "model.layers.0.";

/// float32 but for one int8 weight.
NamedParameters model() {
  NamedParameters parameters;
  for (const std::string name :
       {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "lm_head.bias",
        "model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.q_proj.base_layer.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight", "model.layers.0.self_attn.q_proj.lora_B.default.weight",
        "model.layers.0.self_attn.k_proj.weight", "model.layers.0.mlp.norm_of_nothing"})
    parameters[name] = at::ones({2});
  parameters[kLayer + "self_attn.v_proj.weight"] = at::ones({2}, at::kChar);
  parameters[kLayer + "self_attn.v_proj.lora_A.weight"] = at::ones({2});
  return parameters;
}

std::set<std::string> cast_names(const NamedParameters& before, UpcastPolicy policy) {
  std::set<std::string> names;
  const NamedParameters after = upcast_for_flash(before, at::kBFloat16, policy);
  EXPECT_EQ(after.size(), before.size());
  for (const auto& [name, tensor] : after) {
    if (tensor.scalar_type() == before.at(name).scalar_type()) continue;
    EXPECT_EQ(tensor.scalar_type(), at::kBFloat16) << name;
    names.insert(name);
  }
  return names;
}

TEST(UpcastForFlash, OfFlagEmbeddingCastsLoraLayersNormsHeadAndEmbeddings) {
  EXPECT_THAT(cast_names(model(), UpcastPolicy::flagembedding),
              ElementsAre("lm_head.bias", "lm_head.weight", "model.embed_tokens.weight", kLayer + "input_layernorm.weight",
                          kLayer + "post_attention_layernorm.weight", kLayer + "self_attn.q_norm.weight",
                          kLayer + "self_attn.q_proj.base_layer.weight", kLayer + "self_attn.q_proj.lora_A.weight",
                          kLayer + "self_attn.q_proj.lora_B.default.weight", kLayer + "self_attn.v_proj.lora_A.weight",
                          "model.norm.weight"));
}

TEST(UpcastForFlash, OfFastchatLeavesLoraLayersOut) {
  EXPECT_THAT(cast_names(model(), UpcastPolicy::fastchat),
              ElementsAre("lm_head.bias", "lm_head.weight", "model.embed_tokens.weight", kLayer + "input_layernorm.weight",
                          kLayer + "post_attention_layernorm.weight", kLayer + "self_attn.q_norm.weight", "model.norm.weight"));
}

TEST(UpcastForFlash, AHeadWithoutAWeightIsLeftAlone) {
  EXPECT_THAT(cast_names({{"lm_head.bias", at::ones({2})}}, UpcastPolicy::flagembedding), IsEmpty());
}

TEST(UpcastForFlash, KeepsTheValuesThatTheDtypeHas) {
  const NamedParameters after =
      upcast_for_flash({{"norm.weight", at::full({1}, 1.0 + 0x1p-12)}}, at::kHalf, UpcastPolicy::fastchat);
  EXPECT_TRUE(at::equal(after.at("norm.weight"), at::ones({1}, at::kHalf)));
}

}  // namespace
}  // namespace attnbench
