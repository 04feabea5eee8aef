// The reference of trainings: attention written out, whose roundings are drawn, so that runs of it show how far rounding alone
// takes a training.
#pragma once

#include "harness/training/trainer.hpp"

namespace attnbench {

/// In float32, but for what is stored on the way, forward and backward (P, O, dO, dP, dS, dQ, dK, dV): rounded to the dtype up or
/// down at random, by their distance; another `draw` rounds otherwise. fp32 loses its last three bits so.
TrainedAttention perturbed_attention(Dtype dtype, uint64_t draw);

}  // namespace attnbench
