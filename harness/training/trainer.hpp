// A model that is trained with any attention: what cases of the operation `training` (harness/run/training_run.hpp) judge.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "harness/run/case.hpp"
#include "harness/run/declaration.hpp"

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

/// The case's model, from its seed, to be trained on pieces of `text`.
std::unique_ptr<Trainer> make_small_llama(const Case& c, const std::string& text, const Device& device,
                                          TrainedAttention attention);

}  // namespace attnbench
