// What `--attention auto` picks for the layers of llama on a machine, or on one with another GPU.
#pragma once

#include <optional>
#include <string>

#include "harness/run/protocol.hpp"

namespace attnbench {

/// For each pass, dtype and head dim of a causal layer the attention picked and why; shapes with one answer stand before it. On
/// `assume_sm` (75 = SM 7.5) as if its libraries were there in these versions.
std::string auto_choices(const Hello& hello, std::optional<int> assume_sm);

}  // namespace attnbench
