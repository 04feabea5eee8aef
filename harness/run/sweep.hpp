// Sweeps: a line whose values hold commas stands for the product of its values.
#pragma once

#include <cstdint>
#include <vector>

#include "harness/run/case_text.hpp"

namespace attnbench {

/// Lines that the sweeps of `text` stand for. Throws CaseError at the operation's place if there are more than `limit`.
int64_t count_sweep(const CaseText& text, int64_t limit);

/// Bytes of the keys and values of the longest of those lines.
int64_t longest_line(const CaseText& text);

/// One text for each combination; the last key varies fastest.
std::vector<CaseText> expand_sweep(const CaseText& text);

}  // namespace attnbench
