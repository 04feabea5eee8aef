// What layers declare of themselves follows from what computes their attention.
#pragma once

#include <string>

#include "harness/worker/backend.hpp"

namespace attnbench {

/// A causal layer over padded rows that writes its attention out in LibTorch operations, as `eager` does.
Declaration eager_layer(const std::string& name);

/// A causal layer over padded rows whose real tokens alone reach `attention`; padded rows of the output are 0.
Declaration fused_layer(const std::string& name, const Backend& attention);

}  // namespace attnbench
