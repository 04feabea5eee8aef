// eager: attention as Hugging Face's LLaMA writes it out in LibTorch operations, every intermediate in the case's dtype
// but the softmax, which is float32: repeat_kv, matmul, times scale, plus a mask of finfo(dtype).min, softmax, cast, matmul.
// Softcap, ALiBi, sinks and dropout are float32 too, between the scale and the cast, so that nothing more is rounded; the mask of
// scores with such options is added after them.
#pragma once

#include "backends/attention/dense.hpp"
#include "backends/attention/eager_dropout.hpp"

namespace attnbench {

/// What becomes of products between Q K^T and P V.
struct EagerScores {
  double scale = 1;
  double softcap = 0;                          ///< 0: none
  at::Tensor slopes = {}, sinks = {};          ///< of ALiBi and of the sinks, float32 [hq, 1, 1]; undefined: none
  std::shared_ptr<EagerDropout> dropout = {};  ///< null: none
  bool has_options() const { return softcap != 0 || slopes.defined() || sinks.defined(); }
};

class Eager : public Backend {
 public:
  Eager();
  const Declaration& declaration() const override { return declaration_; }
  Run prepare(const Case& c, const Inputs& inputs, Pass pass) const override;

 protected:
  // What the self-test's copies (eager_planted.cpp) get wrong.
  virtual std::vector<DenseCall> calls(const Case& c, const Inputs& inputs) const;
  /// From one call to its output [b, hq, lq, dv].
  virtual at::Tensor attention(const DenseCall& call, const EagerScores& how) const;

  Declaration declaration_;
};

/// The most negative number of the dtype: what the mask adds where a key is hidden.
double lowest(at::ScalarType dtype);

/// [b, hkv, l, d] -> [b, hkv * group, l, d], each head repeated `group` times in a row.
at::Tensor repeat_kv(const at::Tensor& x, int64_t group);

}  // namespace attnbench
