#include "backends/llama/internvl_refusals.hpp"

#include <stdexcept>

#include <fmt/format.h>

namespace attnbench {

void refuse_beyond_training(const std::string& name, const Case& c) {
  const auto refuse = [&](const std::string& what) { throw std::invalid_argument(fmt::format("{}: {}", name, what)); };
  if (c.problem.hkv != c.problem.hq)
    refuse(fmt::format("{} key heads for {} query heads: keys and values are split into as many heads as queries", c.problem.hkv,
                       c.problem.hq));
  if (c.llama->past > 0) refuse(fmt::format("a past of {} tokens is not supported", c.llama->past));
  if (c.llama->chunks > 1) refuse(fmt::format("{} calls, and a past from the second on, are not supported", c.llama->chunks));
  if (c.llama->weights) refuse("output_attentions is not supported");
  if (c.llama->cache) refuse("use_cache is not supported");
}

}  // namespace attnbench
