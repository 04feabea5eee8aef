// Packed QKV: queries, keys and values of one length and as many heads each in one tensor [tokens, 3, heads, d], with the 2-D
// mask of the real tokens where the model would have made a 4-D one. Without a mask every row is a sequence of s tokens; with one
// the real tokens are. keys and values go out as a cache, but none can come in.
#pragma once

#include <string>
#include <string_view>

#include "backends/llama/flash_layer.hpp"

namespace attnbench {

/// Throws where the case has fewer key heads than query heads, a past, or chunks: the three do not fit in one tensor then.
/// who_says: how it speaks of an SM below 8.0.
std::unique_ptr<LlamaBackend> make_packed_qkv(const std::string& name, std::string_view who_says, const Backend& attention);

}  // namespace attnbench
