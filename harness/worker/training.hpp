// The door to the model that cases of the operation `training` train (harness/run/training_run.hpp).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "harness/run/case.hpp"
#include "harness/worker/backend.hpp"

namespace attnbench {

/// Causal attention of packed sequences, differentiable: q [tokens, hq, d], k and v [tokens, hkv, d], o [tokens, hq, d].
using TrainedAttention =
    std::function<at::Tensor(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const std::vector<int64_t>& lengths)>;

/// A model that is trained, one step a call.
class Trainer {
 public:
  virtual ~Trainer() = default;
  /// Returns when the device is done: "loss" and the norms of this step's gradients, before the weights change.
  virtual std::map<std::string, double> step() = 0;
};
/// What cases are trained with.
struct TrainingParts {
  /// `attention` in a model; it outlives what is returned. A call that it does not take throws its sentence.
  std::function<TrainedAttention(const Backend& attention)> attention_of;
  /// In float32, but for what is stored on the way, forward and backward (P, O, dO, dP, dS, dQ, dK, dV): rounded to the case's
  /// dtype up or down at random, by their distance; another `draw` rounds otherwise. fp32 loses its last three bits so.
  std::function<TrainedAttention(Dtype dtype, uint64_t draw)> perturbed_attention;
  /// The case's model, from its seed, to be trained on pieces of `text`.
  std::function<std::unique_ptr<Trainer>(const Case& c, const std::string& text, const Device& device,
                                         TrainedAttention attention)>
      trainer;
};

/// Those of this build.
TrainingParts make_training_parts();

}  // namespace attnbench
