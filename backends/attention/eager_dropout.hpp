// The dropout of eager: a mask for every call, drawn by a LibTorch generator of its own.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Generator.h>

#include "backends/attention/dense.hpp"

namespace attnbench {

class EagerDropout {
 public:
  /// p: what share is dropped. The masks of one forward follow from the seed, the shapes of its calls and their order.
  EagerDropout(double p, uint64_t seed, c10::Device device);

  /// A new forward begins: the generator starts anew, and what was drawn is forgotten.
  void begin();

  /// What P [b, hq, lq, lk] of the next call is multiplied by: float32, 0 or 1 / (1 - p).
  at::Tensor factors(const DenseCall& call);

  /// Outputs::kept of these calls, of which those that are not empty have asked for their factors.
  at::Tensor kept(const std::vector<DenseCall>& calls, Layout layout) const;

 private:
  double p_;
  uint64_t seed_;
  at::Generator generator_;
  std::vector<at::Tensor> kept_;  ///< bool [b, hq, lq, lk], by call that is not empty
};

}  // namespace attnbench
