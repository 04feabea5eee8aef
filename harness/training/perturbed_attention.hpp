// The reference of trainings: attention written out, whose roundings are drawn, so that runs of it show how far rounding alone
// takes a training.
#pragma once

#include <compare>

#include "harness/training/trainer.hpp"

namespace attnbench {

/// What attention stores beside P, O, dO, dP, dS, dQ, dK and dV.
struct AlsoStored {
  bool scores = false;        ///< Q K^T, and that times the scale, forward and backward (eager)
  bool gqa_partials = false;  ///< dK and dV of each query head, before they are summed over its group
  auto operator<=>(const AlsoStored&) const = default;
};

/// In float32, but for what is stored on the way, forward and backward: rounded to the dtype up or down at random, by their
/// distance, equal numbers alike; another `draw` rounds otherwise. fp32 loses its last three bits so.
TrainedAttention perturbed_attention(Dtype dtype, AlsoStored also, uint64_t draw);

}  // namespace attnbench
