#include "backends/llama/layer_declaration.hpp"

#include <fmt/format.h>

#include <stdexcept>
#include <utility>

namespace attnbench {

Declaration declare_layer(std::string name, const Declaration& attention) {
  Declaration layer = attention;
  layer.name = std::move(name);
  layer.operation = "llama";
  layer.ours = true;
  layer.conventions.empty_row = Conventions::EmptyRow::zero;
  layer.conventions.lse_empty = Conventions::LseEmpty::none;
  layer.conventions.padded_rows_zero = true;
  Capabilities& can = layer.capabilities;
  can.layouts = {Layout::padded};
  can.masks = {Mask::causal};
  can.aligns = {Align::bottom_right, Align::top_left};  // what `attention` lacks of these it refuses when it is called
  can.strides = {Strides::contiguous};
  can.window = can.softcap = can.alibi = can.sink = can.dropout = can.tail = can.dv_differs = can.returns_lse = false;
  can.gqa = can.unequal_lengths = true;
  can.varying.clear();
  can.invariant_to.clear();
  return layer;
}

void require_equal_heads(const Declaration& layer, const Case& c) {
  const Problem& p = c.problem;
  if (p.hq == p.hkv) return;
  throw std::invalid_argument(
      fmt::format("hq={} hkv={}: {} views keys and values as {} heads, as many as queries have, and their "
                  "projections give {}",
                  p.hq, p.hkv, layer.name, p.hq, p.hkv));
}

}  // namespace attnbench
