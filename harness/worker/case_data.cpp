#include "harness/worker/case_data.hpp"

#include <algorithm>
#include <optional>

#include "harness/attention/emulator.hpp"
#include "harness/worker/memory.hpp"
#include "harness/worker/spending.hpp"

namespace attnbench {

namespace {

/// A GPU's oracle launches some hundred kernels, however small the case is; the cores beside it need as long for so many numbers.
constexpr double kManyNumbers = 1 << 17;

/// Scores, and elements of Q, K, V and dO.
double numbers_of(const Case& c) {
  const Problem& p = c.problem;
  const SequenceLengths lengths = sequence_lengths(p, c.seed);
  double numbers = 0;
  for (size_t n = 0; n < lengths.q.size(); ++n) {
    const auto queries = static_cast<double>(lengths.q[n] * p.hq), keys = static_cast<double>(lengths.k[n]);
    numbers += queries * keys + (queries + keys * static_cast<double>(p.hkv)) * static_cast<double>(p.d + p.dv);
  }
  return numbers;
}

}  // namespace

OracleKind oracle_for(const Declaration& declaration, const Case& c, const Device& device) {
  const bool on_gpu = device.kind != "cpu" && numbers_of(c) > kManyNumbers;
  return declaration.implementation == "eigen" || on_gpu ? OracleKind::torch : OracleKind::eigen;
}

SealedInputs& CaseData::inputs(Conventions::Poison poison) {
  if (!holds_poison(case_)) poison = Conventions::Poison::nan;
  std::unique_ptr<SealedInputs>& inputs = inputs_[poison];
  if (!inputs) inputs = std::make_unique<SealedInputs>(case_, poison, device_);
  return *inputs;
}

Judge CaseData::judge(const Profile& profile, const Conventions& conventions, OracleKind oracle, const at::Tensor& kept) {
  std::optional<Outputs> eager;
  for (const auto& yardstick : yardsticks_) {
    if (yardstick->holds_for(profile, conventions.empty_row, oracle, kept)) return {yardstick, conventions};
    if (yardstick->holds_for(conventions.empty_row, kept)) eager = yardstick->eager();
  }
  Inputs drawn = inputs(conventions.poison).get();
  if (kept.defined()) drawn.kept = kept.clone();
  if (!eager) {
    const SpendingScope emulator(Expense::emulator);
    eager = emulate(case_, drawn, eager_profile(), conventions.empty_row);
  }
  const int64_t kept_bytes = available_bytes(device_) / 10;
  yardsticks_.push_back(
      std::make_shared<Yardstick>(case_, drawn, profile, conventions.empty_row, oracle, *eager, calibration_, kept_bytes));
  return {yardsticks_.back(), conventions};
}

std::string CaseData::restore_inputs() {
  std::string names;
  for (const auto& [poison, inputs] : inputs_) {
    inputs->negate_heads({}, {});
    const std::string overwritten = inputs->overwritten();
    if (overwritten.empty()) continue;
    inputs->restore();
    names = overwritten;
  }
  return names;
}

namespace {

/// The largest cases that the grammar takes are beyond what an int64_t counts in bytes.
int64_t bytes_or_most(double bytes) {
  constexpr double kMost = 9e18;
  return static_cast<int64_t>(std::min(bytes, kMost));
}

}  // namespace

int64_t CaseData::predicted_bytes() const {
  const Problem& p = case_.problem;
  const SequenceLengths lengths = sequence_lengths(p, case_.seed);
  const bool padded = p.layout == Layout::padded;
  const int64_t sequences = int64_t(lengths.q.size());
  const int64_t q_rows = padded ? sequences * lengths.q_pitch : lengths.total_q() + p.tail;
  const int64_t k_rows = padded ? sequences * lengths.k_pitch : lengths.total_k() + p.tail;
  const int64_t elements = (q_rows * p.hq + k_rows * p.hkv) * (p.d + p.dv);
  // Inputs that lie far apart: as they are, and for the fingerprint of one its weights and products with them.
  const double far = case_.strides == Strides::far ? (4 + 2) * 0x1p31 * static_cast<double>(bytes_of(p.dtype)) : 0;
  // The mask of a dropout: as handed out twice, the judge's copy, and by sequence.
  const int64_t columns = padded ? lengths.k_pitch : lengths.max_k();
  const double masks = p.dropout.p > 0 ? 4 * static_cast<double>(q_rows * p.hq) * static_cast<double>(columns) : 0;
  // Inputs in up to two kinds of poison, and the oracle's tokens; for each gradient and output a value, a variance, an allowance,
  // the judged tensor in float64, and the emulator's float32 copies.
  return bytes_or_most(far + masks + static_cast<double>(elements) * static_cast<double>(3 * bytes_of(p.dtype) + 4 * 8 + 3 * 4));
}

}  // namespace attnbench
