// For tests: a backend that computes by the emulator, and may be told to misbehave.
#pragma once

#include <functional>
#include <string>

#include "harness/worker/backend.hpp"

namespace attnbench {

/// Declares the flash profile and conventions for packed and padded cases on a CPU.
Declaration fake_declaration(const std::string& name);

class FakeBackend final : public Backend {
 public:
  /// Called with the outputs of every forward (o, lse) and backward (dq, dk, dv), counted from 1 over both.
  using Tamper = std::function<void(int call, const Inputs& inputs, Outputs& outputs)>;

  explicit FakeBackend(Declaration declaration, Tamper tamper = {})
      : declaration_(std::move(declaration)), tamper_(std::move(tamper)) {}

  const Declaration& declaration() const override { return declaration_; }
  Run prepare(const Case& c, const Inputs& inputs, Pass pass) const override;

  int64_t predicted_bytes = 0;
  /// An earlier window "op" for padded cases: what it returns instead of the packed results that it should.
  std::function<void(Outputs& packed)> tamper_with_op;

 private:
  Declaration declaration_;
  Tamper tamper_;
};

}  // namespace attnbench
