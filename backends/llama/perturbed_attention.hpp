// Attention with drawn roundings: harness/worker/training.hpp says which.
#pragma once

#include "harness/worker/training.hpp"

namespace attnbench {

TrainedAttention perturbed_attention(Dtype dtype, uint64_t draw);

}  // namespace attnbench
