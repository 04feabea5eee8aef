#include "backends/llama/assumed_place.hpp"

#include <optional>
#include <stdexcept>

#include <fmt/format.h>

#include <torch/version.h>

#include "harness/run/safety.hpp"

namespace attnbench {
namespace {

SafetyQuery flash_attn_query(const Case& c, Pass pass) {
  SafetyQuery query = safety_query(c.problem, pass, c.llama->assume.sm);
  query.implementation = "flash_attn";
  query.version = c.llama->assume.flash_attn;
  return query;
}

std::string sm_text(int sm) {
  return fmt::format("SM {}.{}", sm / 10, sm % 10);
}

}  // namespace

void require_flash_attn(const Case& c, Pass pass) {
  const AssumedPlace& place = c.llama->assume;
  if (!place.sm || place.flash_attn.empty()) return;
  const Safety found = safety(flash_attn_query(c, pass));
  if (found.verdict != "ok")
    throw std::invalid_argument(
        fmt::format("flash-attn {} on {}: {}: {}", place.flash_attn, sm_text(*place.sm), found.verdict, found.reason));
}

std::vector<std::string> capability_warnings(std::string_view who_says, const Case& c) {
  const std::optional<int> sm = c.llama->assume.sm;
  if (!safety(flash_attn_query(c, Pass::forward)).sm_below_8) return {};
  return {fmt::format("{}: in training, flash attention is meant for SM 8.0 and later, and this is {}", who_says, sm_text(*sm))};
}

std::string torch_version(const Case& c) {
  const std::string& assumed = c.llama->assume.torch;
  return assumed.empty() ? TORCH_VERSION : assumed;
}

}  // namespace attnbench
