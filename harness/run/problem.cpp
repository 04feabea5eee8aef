#include "harness/run/problem.hpp"

#include <cmath>

namespace attnbench {

double Problem::softmax_scale() const { return scale ? *scale : 1.0 / std::sqrt(static_cast<double>(d)); }

}  // namespace attnbench
