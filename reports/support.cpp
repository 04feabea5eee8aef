#include "reports/support.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/safety.hpp"
#include "reports/auto_choices.hpp"

namespace attnbench {
namespace {

/// A case that needs one capability; the rest of it is what every backend can do.
struct Probe {
  const char* capability;
  const char* line;
};
constexpr Probe kProbes[] = {
    {"bf16", "attention lq=64 d=64 dtype=bf16"},
    {"fp16", "attention lq=64 d=64 dtype=fp16"},
    {"fp32", "attention lq=64 d=64 dtype=fp32"},
    {"d=128", "attention lq=64 d=128"},
    {"d=256", "attention lq=64 d=256"},
    {"dv!=d", "attention lq=64 d=64 dv=32"},
    {"padded", "attention lens=17+64 d=64 layout=padded"},
    {"causal", "attention lq=64 d=64 mask=causal"},
    {"bottom_right", "attention lq=32 lk=64 d=64 mask=causal"},
    {"top_left", "attention lq=32 lk=64 d=64 mask=causal align=top_left"},
    {"window", "attention lq=64 d=64 window=16:0"},
    {"GQA", "attention hq=4 hkv=2 lq=64 d=64"},
    {"lq!=lk", "attention lq=32 lk=64 d=64"},
    {"length 0", "attention lens=64+0 d=64"},
    {"softcap", "attention lq=64 d=64 softcap=30"},
    {"alibi", "attention lq=64 d=64 alibi=on"},
    {"sink", "attention lq=64 d=64 sink=on"},
    {"dropout", "attention lq=64 d=64 dropout=0.1:7"},
    {"tail", "attention lens=17+64 d=64 tail=3"},
    {"transposed", "attention lq=64 d=64 strides=transposed"},
    {"V transposed", "attention lq=64 d=64 strides=v_transposed"},
    {"dO transposed", "attention lq=64 d=64 strides=dout_transposed"},
    {"stride0", "attention lq=64 d=64 strides=stride0"},
    {"unaligned", "attention lq=64 d=64 strides=unaligned"},
    {"far strides", "attention hq=2 lq=64 d=64 strides=far"},
};

Cell capability_cell(const Declaration& declaration, const Case& c, const Device& device) {
  const bool forward = !why_not(declaration, c, Pass::forward, device);
  const bool backward = !why_not(declaration, c, Pass::backward, device);
  if (forward && backward) return {"both", Tone::good};
  if (forward) return {"forward", Tone::warning};
  if (backward) return {"backward", Tone::warning};
  return {"no", Tone::dim};
}

std::string repeats_text(const Capabilities& can) {
  if (can.deterministic) return "yes";
  return can.varying.empty() ? "no" : fmt::format("all but {}", fmt::join(can.varying, ", "));
}

std::string invariant_text(const Capabilities& can) {
  std::vector<std::string_view> names;
  for (Relation relation : can.invariant_to) names.push_back(name_of(relation));
  return names.empty() ? "–" : fmt::format("{}", fmt::join(names, ", "));
}

TextTable capability_table(const Hello& hello) {
  TextTable table{"Backends on " + hello.device.name, {{"capability", Column::Side::left}}, {}, 1, ""};
  for (const Declaration& declaration : hello.backends) table.columns.push_back({declaration.name, Column::Side::left});
  const auto add_row = [&](const std::string& name, auto&& cell) {
    std::vector<Cell>& row = table.rows.emplace_back();
    row.push_back({name});
    for (const Declaration& declaration : hello.backends) row.push_back(cell(declaration));
  };
  add_row("version", [](const auto& d) { return Cell{d.version}; });
  add_row("gated by default", [](const auto& d) { return Cell{d.ours ? "yes" : "no"}; });
  for (const Probe& probe : kProbes) {
    const Case c = parse_case(probe.line, "support");
    add_row(probe.capability, [&](const auto& d) { return capability_cell(d, c, hello.device); });
  }
  add_row("scale below 0", [](const auto& d) { return Cell{d.capabilities.negative_scale ? "yes" : "no"}; });
  add_row("returns LSE", [](const auto& d) { return Cell{d.capabilities.returns_lse ? "yes" : "no"}; });
  add_row("deterministic", [](const auto& d) { return Cell{repeats_text(d.capabilities)}; });
  add_row("same bits whatever", [](const auto& d) { return Cell{invariant_text(d.capabilities)}; });
  return table;
}

std::string refusals(const Hello& hello) {
  std::string text;
  for (const Declaration& declaration : hello.backends) {
    std::vector<std::string> sentences;
    for (const Probe& probe : kProbes) {
      const Case c = parse_case(probe.line, "support");
      for (Pass pass : {Pass::forward, Pass::backward}) {
        const auto reason = why_not(declaration, c, pass, hello.device);
        if (reason && std::find(sentences.begin(), sentences.end(), *reason) == sentences.end()) sentences.push_back(*reason);
      }
    }
    if (!sentences.empty()) text += fmt::format("  {}:\n    {}\n", declaration.name, fmt::join(sentences, "\n    "));
  }
  return text.empty() ? text : "Why not\n" + text;
}

std::string safety_text(const Hello& hello, std::optional<int> assume_sm) {
  const std::optional<int> sm = assume_sm ? assume_sm : hello.device.sm;
  if (!sm) return "Safety: no GPU here, nothing is flagged (--assume-sm X.Y asks for another machine)\n";
  std::string text = fmt::format("Safety of backward on SM {}.{}\n", *sm / 10, *sm % 10);
  size_t width = 0;
  for (const Declaration& declaration : hello.backends) width = std::max(width, declaration.name.size());
  for (const Declaration& declaration : hello.backends) {
    for (int64_t head_dim : {64, 128, 256}) {
      SafetyQuery query{sm, head_dim, Dtype::fp16, true, false, declaration.implementation, declaration.version};
      const Safety found = safety(query);
      text +=
          fmt::format("  {:<{}} d={:<4} {}{}{}{}\n", declaration.name, width, head_dim, found.verdict,
                      found.sm_below_8 ? ", SM < 8" : "", found.backward_d_above_64_sm_below_8 ? " and a head dim above 64" : "",
                      found.reason.empty() ? "" : fmt::format(": {} ({})", found.reason, found.source));
    }
  }
  return text;
}

}  // namespace

std::string support_report(const Hello& hello, std::optional<int> assume_sm, const TextStyle& style) {
  Hello kernels = hello;  // layers call these, and are no columns beside them
  std::erase_if(kernels.backends, [](const Declaration& declaration) { return declaration.operation != "attention"; });
  std::string layers;
  for (const Declaration& declaration : hello.backends)
    if (declaration.operation == "llama") layers += (layers.empty() ? "" : ", ") + declaration.name;
  if (!layers.empty()) layers = "\nLayers of the operation llama (cases/README.md): " + layers + "\n";
  if (!layers.empty()) layers += "\n" + auto_choices(hello, assume_sm);
  return fmt::format("{}\n{}\n{}{}", to_text(capability_table(kernels), style), refusals(kernels),
                     safety_text(kernels, assume_sm), layers);
}

}  // namespace attnbench
