// internvl_packed: InternVL's packed training. The place of the attention mask carries cu_seqlens of the samples in one row; what
// stands behind them is a sample of its own. A sliding window is handed on as (w, w): w + 1 keys where the mask is causal.
// It replaces the call of flash-attn alone, in transformers' own layer: that casts float32 queries, keys and values to the dtype
// of the weights, and warns. (It says causal = is_causal and (flash-attn >= 2.1 or more than one query), which cannot show here:
// the queries are the keys.)
#include <fmt/format.h>

#include "backends/llama/assumed_place.hpp"
#include "backends/llama/attention_call.hpp"
#include "backends/llama/declared_layer.hpp"
#include "backends/llama/flash_dtypes.hpp"
#include "backends/llama/layer.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// cu_seqlens int32 [samples + 1]
std::vector<int64_t> sample_lengths(const Tensor& cu_seqlens) {
  const Tensor host = cu_seqlens.to(at::kCPU).to(at::kLong).diff().contiguous();
  return {host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + host.numel()};
}

/// What transformers' layer does where the queries are float32 and the weights are not, with its warning; else nothing.
std::vector<std::string> cast_back(Projected& tokens, at::ScalarType weights) {
  if (tokens.q.scalar_type() == weights) return {};
  for (Tensor* t : {&tokens.q, &tokens.k, &tokens.v}) *t = t->to(weights);
  return {fmt::format("the states were silently cast to float32: queries, keys and values are cast back to {}",
                      c10::toString(weights))};
}

class InternvlPacked : public DeclaredLayer {
 public:
  explicit InternvlPacked(const Backend& attention)
      : DeclaredLayer(fused_layer("internvl_packed", attention)), attention_(attention) {
    const Capabilities& its = attention.declaration().capabilities;
    Capabilities& can = declaration_.capabilities;
    can.layouts = {Layout::packed};
    can.masks = its.masks;
    can.window = its.window;
    can.tail = true;
  }

  std::optional<std::string> why_not(const Case& c, Pass pass, const Device& device) const override {
    if (const auto why = DeclaredLayer::why_not(c, pass, device)) return why;
    if (c.llama->cache || c.llama->chunks > 1) return "internvl_packed is for training, and has no cache";
    if (c.llama->weights) return "internvl_packed returns no probabilities";
    return std::nullopt;
  }

  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    require_flash_attn(c, pass);
    const Problem& p = c.problem;
    const LayerTensors x = leaves(c, inputs, pass);
    Projected tokens = project(x, c, inputs, 0, p.lq);
    LlamaOutputs outputs;
    outputs.warnings = cast_back(tokens, x.hidden.scalar_type());
    require_flash_dtypes(tokens.q, tokens.k, tokens.v);
    AttentionCall call;
    call.q = tokens.q.squeeze(0);
    call.k = tokens.k.squeeze(0);
    call.v = tokens.v.squeeze(0);
    call.q_lengths = call.k_lengths = sample_lengths(inputs.cu_seqlens);
    call.causal = p.mask == Mask::causal;
    if (p.window) call.window = {p.window->left, p.window->left};
    outputs.out = project_out(attend(attention_, call).unsqueeze(0), x);
    add_gradients(outputs, x, inputs, pass);
    return outputs;
  }

 private:
  const Backend& attention_;
};

}  // namespace

std::unique_ptr<LlamaBackend> make_internvl_packed(const Device&, const Backend& attention) {
  return std::make_unique<InternvlPacked>(attention);
}

}  // namespace attnbench
