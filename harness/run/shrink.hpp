// From a case that fails to a small one that still does.
#pragma once

#include <functional>

#include "harness/run/case.hpp"

namespace attnbench {

inline constexpr int kMostTries = 200;

/// Tries smaller cases one after the other and goes on from each that still fails: fewer sequences, shorter ones, fewer heads,
/// smaller head dims, keys at their defaults, a narrower window, fewer rows behind the last sequence, until nothing that it knows
/// makes the case smaller, or `most_tries` were asked for. `failing` fails. No case is tried twice; each is a valid line, with
/// the metadata of `failing`.
Case shrink(const Case& failing, const std::function<bool(const Case&)>& still_fails, int most_tries = kMostTries);

}  // namespace attnbench
