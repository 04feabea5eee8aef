// The inputs of a case with the fingerprints they had when they were drawn: a backend that writes to them is seen.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "harness/attention/inputs.hpp"

namespace attnbench {

/// Every tensor with its name; undefined ones are left out.
using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;
NamedTensors named_tensors(const Inputs& inputs);
NamedTensors named_tensors(const Outputs& outputs);

class SealedInputs {
 public:
  /// Draws them in checked memory (memory.hpp), so that a write outside of them is seen too.
  SealedInputs(const Case& c, Conventions::Poison poison, const Device& device);

  /// What oracle and judge read.
  const Inputs& get() const { return inputs_; }

  /// What a backend gets: tensors of its own over the same memory. One that gives them other sizes, strides or gradients
  /// changes nothing for the oracle, or for who comes next.
  Inputs lend() const;

  /// Names of the tensors that no longer hold what was drawn ("q, k"); empty: intact. Padding and poison count.
  std::string overwritten() const;

  /// By key head: true = negated. Empty: none is.
  using HeadSigns = std::vector<bool>;

  /// V and dO with these heads negated (dO: the query heads that read them), whatever was negated before. Where heads of V share
  /// memory, their signs have to be the same.
  void negate_heads(HeadSigns v, HeadSigns dout);

  /// While it lives, heads are negated as negate_heads() does it; then they are what they were before.
  class Signs {
   public:
    Signs(SealedInputs& inputs, HeadSigns v, HeadSigns dout);
    ~Signs();
    Signs(const Signs&) = delete;
    Signs& operator=(const Signs&) = delete;

   private:
    SealedInputs& inputs_;
    HeadSigns v_before_, dout_before_;
  };

  /// While it lives, the tokens that nobody may read hold finite garbage, where they were drawn as NaN.
  class FinitePoison {
   public:
    explicit FinitePoison(SealedInputs& inputs);
    ~FinitePoison();
    FinitePoison(const FinitePoison&) = delete;
    FinitePoison& operator=(const FinitePoison&) = delete;

   private:
    SealedInputs& inputs_;
    const bool applies_;
  };

  /// Makes one tensor NaN, and queues behind `delay` what makes it whole again: on the current stream of a GPU.
  void write_late(at::Tensor Inputs::*tensor, const std::function<void()>& delay);

  /// Draws them anew into the same memory, no head negated: who runs next is judged on the right inputs.
  void restore();

 private:
  Inputs draw() const;
  void hold(Conventions::Poison poison);

  Case case_;
  Conventions::Poison poison_;
  Device device_;
  Inputs inputs_;
  Conventions::Poison held_;  ///< what the tokens hold now that nobody may read
  /// In the order of named_tensors, no head negated; by what was held so far.
  std::map<Conventions::Poison, std::vector<uint64_t>> fingerprints_;
  HeadSigns v_signs_, dout_signs_;
};

/// What calls on inputs with such signs would have computed without them: O follows V, dV follows dO, dQ and dK both.
Outputs without_signs(Outputs outputs, const SealedInputs::HeadSigns& v, const SealedInputs::HeadSigns& dout);

}  // namespace attnbench
