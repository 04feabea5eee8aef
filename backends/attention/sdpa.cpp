#include "backends/attention/sdpa.hpp"

#include <algorithm>

#include <ATen/Parallel.h>

namespace attnbench {
namespace {

/// LibTorch's blocks: up to 256 queries, 512 keys.
constexpr int64_t kQueryBlock = 256, kKeyBlock = 512;

}  // namespace

Profile sdpa_math_profile() {
  return {.name = "fp32_inside", .p = Profile::Probabilities::not_rounded, .rounds_ds = false, .d = Profile::RowSum::from_p_dp};
}

Profile sdpa_flash_profile() {
  return {.name = "flash",
          .p = Profile::Probabilities::unnormalised,
          .rounds_ds = true,
          .d = Profile::RowSum::from_output,
          .rounds_gqa_partials = true};
}

Conventions sdpa_conventions() {
  return {.empty_row = Conventions::EmptyRow::zero,
          .lse_empty = Conventions::LseEmpty::minus_infinity,
          .poison = Conventions::Poison::finite,
          .padded_rows_zero = true};
}

/// Float32 copies of the inputs (scaled, and repeated for GQA) and three score matrices at a time; the graph keeps two.
int64_t sdpa_math_bytes(const std::vector<DenseCall>& calls, const Inputs& inputs, Pass pass) {
  const ScoreElements scores = score_elements(calls);
  const int64_t group = std::max<int64_t>(1, inputs.q.size(-2) / inputs.k.size(-2));
  const int64_t copies = 4 * (2 * inputs.q.numel() + 2 * group * (inputs.k.numel() + inputs.v.numel()));
  const int64_t kept = pass == Pass::backward ? 8 * scores.all : 0;
  return output_bytes(inputs, pass, false) + copies + 12 * scores.largest + kept;
}

/// One block of scores and one of outputs a thread, in float32; the backward holds P and dS as well.
int64_t sdpa_flash_bytes(const std::vector<DenseCall>&, const Inputs& inputs, Pass pass) {
  const int64_t copies = pass == Pass::backward ? 3 : 2;
  const int64_t block = kQueryBlock * (kKeyBlock + inputs.v.size(-1)) * 4 * copies;
  return output_bytes(inputs, pass, true) + block * at::get_num_threads();
}

std::optional<at::Tensor> optional_mask(const DenseCall& call) {
  return call.mask.defined() ? std::optional(call.mask) : std::nullopt;
}

}  // namespace attnbench
