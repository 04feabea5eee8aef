// "Did you mean": the known word that lies nearest to a mistyped one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace attnbench {

/// Cost of turning one word into the other: 2 for an inserted or dropped letter, 3 for a replaced one or two swapped ones,
/// so that 'hd' lies nearer to 'd' than to 'hq'.
int edit_cost(std::string_view from, std::string_view to);

/// The nearest of `known` if it lies near enough to be what was meant, else empty.
std::string nearest(std::string_view word, const std::vector<std::string_view>& known);

/// "; did you mean 'd'?", or nothing.
std::string did_you_mean(std::string_view word, const std::vector<std::string_view>& known);

}  // namespace attnbench
