// What InternVL's two patches of LLaMA refuse: they are for training alone.
#pragma once

#include <string>

#include "harness/run/case.hpp"

namespace attnbench {

/// Throws std::invalid_argument with a sentence on a past, a call after another, output_attentions, use_cache, and on fewer key
/// heads than query heads.
void refuse_beyond_training(const std::string& name, const Case& c);

}  // namespace attnbench
