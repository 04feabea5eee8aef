// A maker for each LLaMA layer, defined in the layer's file.
#pragma once

#include <memory>

#include "harness/worker/backend.hpp"
#include "harness/worker/llama_backend.hpp"

namespace attnbench {

/// `attention` is what layers that call a fused kernel call; it outlives what is made.
using LlamaMaker = std::unique_ptr<LlamaBackend>(const Device& device, const Backend& attention);
LlamaMaker make_hf_eager, make_attention_switch, make_flagembedding, make_flagembedding_switch, make_fastchat_llama1,
    make_fastchat_llama2, make_fastchat_xformers, make_internvl, make_internvl_flash_v1, make_internvl_flash_v2,
    make_internvl_llava, make_internvl_sdpa, make_internvl_packed, make_internvit;

}  // namespace attnbench
