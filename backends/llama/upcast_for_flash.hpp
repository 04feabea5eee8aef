// Before a model runs with flash-attn, which takes fp16 and bf16 alone, training scripts cast what was kept in float32.
#pragma once

#include <map>
#include <string>

#include <ATen/core/Tensor.h>

namespace attnbench {

/// By name, as in Hugging Face's state dicts: "model.layers.0.self_attn.q_proj.weight". The module of a parameter is its name up
/// to the last dot.
using NamedParameters = std::map<std::string, at::Tensor>;

/// FastChat casts all that FlagEmbedding does but the LoRA layers.
enum class UpcastPolicy { flagembedding, fastchat };

/// The parameters with those of LoRA layers (modules that hold a lora_A, with the weights that it stands beside), of modules with
/// "norm" in their names, and of lm_head and embed_tokens where these have a weight, in `dtype`. Integers stay what they are.
NamedParameters upcast_for_flash(NamedParameters parameters, at::ScalarType dtype, UpcastPolicy policy);

}  // namespace attnbench
