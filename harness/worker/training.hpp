// The door through which backends of attention come into a model that is trained.
#pragma once

#include "harness/training/trainer.hpp"
#include "harness/worker/backend.hpp"

namespace attnbench {

/// `attention` in a model; it outlives what is returned. A call that it does not take throws its sentence.
TrainedAttention trained_attention(const Backend& attention);

}  // namespace attnbench
