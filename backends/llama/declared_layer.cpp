#include "backends/llama/declared_layer.hpp"

#include <stdexcept>

#include <fmt/format.h>

#include "backends/attention/eager.hpp"
#include "harness/run/case_limits.hpp"

namespace attnbench {
namespace {

/// Of capabilities that speak of attention, what a layer makes of them.
void be_causal_layer(Declaration& declaration, const std::string& name) {
  declaration.name = name;
  declaration.operation = "llama";
  declaration.ours = true;
  declaration.conventions.lse_empty = Conventions::LseEmpty::none;
  Capabilities& can = declaration.capabilities;
  can.layouts = {Layout::padded};
  can.masks = {Mask::causal};
  can.strides = {Strides::contiguous, Strides::transposed};
  can.window = can.softcap = can.alibi = can.sink = can.dropout = can.dv_differs = can.tail = can.returns_lse = false;
  can.varying.clear();  // its names are those of attention's tensors
  can.invariant_to.clear();
}

}  // namespace

Declaration eager_layer(const std::string& name) {
  Declaration declaration = Eager().declaration();
  be_causal_layer(declaration, name);
  return declaration;
}

FusedDeclaration fused_layer(const std::string& name, const Backend& attention) {
  FusedDeclaration declaration{attention.declaration(), attention.declaration().name};
  be_causal_layer(declaration, name);
  // What `attention` lacks it says when it is called, after the layer's own refusals.
  Capabilities& can = declaration.capabilities;
  can.dtypes = {Dtype::bf16, Dtype::fp16, Dtype::fp32};
  can.min_head_dim = can.head_dim_multiple = 1;
  can.max_head_dim = kMaxHeadDim;
  can.aligns = {Align::bottom_right, Align::top_left};
  can.gqa = can.unequal_lengths = can.empty_sequences = true;
  declaration.conventions.empty_row = Conventions::EmptyRow::zero;
  declaration.conventions.padded_rows_zero = true;
  return declaration;
}

std::optional<std::string> DeclaredLayer::why_not(const Case& c, Pass pass, const Device& device) const {
  if (!can_be_switched() && (!c.llama->switching.empty() || c.llama->runs))
    return fmt::format("{} is set: {} cannot be switched", c.llama->switching.empty() ? "runs" : "switch", declaration_.name);
  if (!has_mask_of_model() && c.llama->mask_keys > 0)
    return fmt::format("mask_keys is set: {} takes no 4-D mask of the model's", declaration_.name);
  return LlamaBackend::why_not(c, pass, device);
}

LayerPath::LayerPath(const LlamaBackend& whole, const Declaration& computes, std::string attention)
    : whole_(whole), declaration_(whole.declaration()), called_(std::move(attention)) {
  declaration_.profile = computes.profile;
  declaration_.conventions.empty_row = computes.conventions.empty_row;
}

void require_equal_heads(const Declaration& layer, const Case& c) {
  const Problem& p = c.problem;
  if (p.hq == p.hkv) return;
  throw std::invalid_argument(
      fmt::format("hq={} hkv={}: {} views keys and values as {} heads, as many as queries have, and their projections give {}",
                  p.hq, p.hkv, layer.name, p.hq, p.hkv));
}

}  // namespace attnbench
