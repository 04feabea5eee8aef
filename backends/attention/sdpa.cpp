#include "backends/attention/sdpa.hpp"

#include <algorithm>

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

namespace attnbench {
namespace {

constexpr int64_t kKeyBlock = 512;

/// LibTorch's choice.
int64_t query_block(int64_t lq) {
  return lq >= 768 ? 256 : lq >= 192 ? 64 : 32;
}

/// Of one thread: scores in float32, in the backward those of P and of dP, each rounded as well if the dtype is a half; the
/// forward also accumulates O, the backward of a half repacks Q, dO, K, V and dS. Some numbers for each row.
int64_t flash_block_bytes(const DenseCall& call, Pass pass) {
  const int64_t size = call.q.element_size(), half = size == 4 ? 0 : size, channels = call.q.size(3) + call.v.size(3);
  const int64_t queries = query_block(call.q.size(2)), keys = std::min(kKeyBlock, call.k.size(2)), row = 48;
  const int64_t scores = queries * keys * (4 + half);
  if (pass == Pass::forward) return scores + queries * (4 * call.v.size(3) + row);
  return 2 * scores + half * ((queries + keys) * channels + queries * keys) + queries * row;
}

int64_t rounded_up(int64_t number, int64_t multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

/// Where the processor multiplies tiles of the dtype (AMX) the forward repacks K and V for every query head, and a block of keys
/// and one of queries for every thread.
int64_t flash_pack_bytes(const DenseCall& call) {
  if (!at::native::cpublas::could_pack(call.q.scalar_type())) return 0;
  const int64_t size = call.q.element_size(), keys = rounded_up(call.k.size(2), 64), channels = call.q.size(3) + call.v.size(3);
  const int64_t of_thread = (query_block(call.q.size(2)) + std::min(kKeyBlock, keys)) * channels;
  return size * (call.q.size(0) * call.q.size(1) * keys * channels + at::get_num_threads() * of_thread);
}

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

/// Float32 copies of the inputs (converted, scaled, laid out for a product, repeated for GQA) and of O, two score matrices at a
/// time, and the triangle of is_causal as a bool and a float32 mask; the graph keeps P.
int64_t sdpa_math_bytes(const std::vector<DenseCall>& calls, const Inputs& inputs, Pass pass) {
  const ScoreElements scores = score_elements(calls);
  const int64_t group = inputs.q.size(-2) / inputs.k.size(-2);
  const int64_t copies = 4 * 4 * (inputs.q.numel() + group * (inputs.k.numel() + inputs.v.numel()));
  const int64_t kept = pass == Pass::backward ? 4 * scores.all : 0;
  int64_t triangle = 0;
  for (const DenseCall& call : calls) triangle = std::max(triangle, call.is_causal ? 5 * call.q.size(2) * call.k.size(2) : 0);
  return output_bytes(inputs, pass, false) + triangle + copies + 8 * scores.largest + kept;
}

/// The outputs, twice where those of several calls are joined, the blocks of all threads, what is repacked, and copies of dK and
/// dV that GQA sums.
int64_t sdpa_flash_bytes(const std::vector<DenseCall>& calls, const Inputs& inputs, Pass pass) {
  int64_t block = 0, packed = 0;
  for (const DenseCall& call : calls) {
    block = std::max(block, flash_block_bytes(call, pass));
    packed = std::max(packed, flash_pack_bytes(call));
  }
  const int64_t outputs = output_bytes(inputs, pass, true) * (calls.size() > 1 ? 2 : 1);
  const bool sums = pass == Pass::backward && inputs.q.size(-2) != inputs.k.size(-2);
  return outputs + packed + block * at::get_num_threads() +
         (sums ? static_cast<int64_t>(inputs.k.nbytes() + inputs.v.nbytes()) : 0);
}

}  // namespace attnbench
