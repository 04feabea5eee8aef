// Spreads independent pieces of work over the cores. Each piece writes its own place, so that results do not depend on
// how many threads there are.
#pragma once

#include <cstdint>
#include <functional>

namespace attnbench {

/// body(i) once for every i in [0, count); an exception of any of them is thrown again here.
void for_each_in_parallel(int64_t count, const std::function<void(int64_t)>& body);

}  // namespace attnbench
