// What a layer asks of the place where a case has it believe to run: versions of libraries, and the SM.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "harness/run/case.hpp"

namespace attnbench {

/// Throws std::invalid_argument with the safety table's reason where the flash-attn that the case assumes does not do this pass
/// on the SM that it assumes; nothing where it assumes only one of them.
void require_flash_attn(const Case& c, Pass pass);

/// How a stack speaks of an SM below 8.0: FlagEmbedding prints, FastChat warns.
inline constexpr std::string_view kFlagembeddingSays = "FlagEmbedding prints", kFastchatSays = "FastChat warns";

/// The sentence that it says then, whatever the head dim, and goes on; none where the case assumes no such SM.
std::vector<std::string> capability_warnings(std::string_view who_says, const Case& c);

/// The torch that the case assumes, else LibTorch's version.
std::string torch_version(const Case& c);

}  // namespace attnbench
