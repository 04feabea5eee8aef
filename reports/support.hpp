// `attnbench support`: which backend can do what on a machine, and why not.
#pragma once

#include <optional>
#include <string>

#include "harness/run/protocol.hpp"
#include "reports/text_table.hpp"

namespace attnbench {

/// Backends x capabilities, each refusal as the backend's own sentence, which backward passes are unsafe here, or on `assume_sm`
/// (75 = SM 7.5), and what layers get from --attention auto there.
std::string support_report(const Hello& hello, std::optional<int> assume_sm, const TextStyle& style);

}  // namespace attnbench
