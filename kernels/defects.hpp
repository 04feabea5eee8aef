// The mistakes that the self-test plants in the kernels: `attnbench selftest` must see each of them.
// Most have shipped in some attention kernel, or are the ones that a reader of two kernels confuses.
#pragma once

#include <span>

#include "kernels/flash_varlen.hpp"

namespace attnbench::flash_varlen {

enum class Defect {
  // Shape, mask and scale.
  causal_one_late,
  causal_one_early,
  other_corner,
  window_one_wider,
  window_one_narrower,
  key_head_modulo,
  cu_seqlens_off_by_one,
  next_key_read,
  last_key_dropped,
  first_key_tile_skipped,
  last_key_tile_skipped,
  hidden_keys_multiplied,
  scale_twice,
  scale_in_bf16,
  log2e_in_bf16,
  log2e_short,
  base_two,
  // Loading.
  stale_last_key,
  key_row_duplicated,
  values_swizzled,
  value_columns_zero,
  depth_16_short,
  // Softmax.
  o_not_rescaled,
  l_not_rescaled,
  rescale_frame,
  tail_unmasked,
  exp_oscillates,
  exp_drifts,
  exp_flushed,
  scores_rounded,
  p_truncated,
  p_in_fp8,
  p_subnormals_flushed,
  l_from_rounded_p,
  o_accumulator_rounded,
  // Forward results.
  o_truncated,
  o_zero,
  last_row_unwritten,
  last_row_halved,
  lse_in_log2,
  lse_is_maximum,
  lse_rounded,
  lse_element_off,
  // Backward: row sums, P and dS.
  d_rounded,
  d_from_rounded_products,
  d_zero,
  d_row_off_by_one,
  lse_row_off_by_one,
  backward_causal_one_late,
  backward_log2e_short,
  backward_p_truncated,
  dp_rounded,
  ds_from_rounded,
  ds_truncated,
  dout_strides_ignored,
  // Backward: sums over tiles.
  dq_tile_lost,
  dq_fragment_lost,
  dq_element_lost,
  dq_fragment_racy,
  dq_element_racy,
  dq_tile_twice,
  dk_tile_twice,
  dv_last_queries_lost,
  dk_dv_one_head,
  dq_accumulator_rounded,
  dk_dv_accumulators_rounded,
  // Backward results.
  dq_unscaled,
  dq_truncated,
  dq_zero,
  dk_unscaled,
  dk_scaled_twice,
  dk_zero,
  dv_zero,
  unseen_keys_unwritten,
  unseen_keys_stale,
};

struct DefectFacts {
  Defect defect;
  const char* name;          ///< of the enumerator
  const char* what;          ///< what the kernel does, as a sentence without its end
  bool forward, backward;    ///< in which pass it can show, given that gradients are judged by the kernel's own O
  const char* only_on = "";  ///< "cuda", "cpu": planted in those kernels alone; empty: in both
};

/// All of them, in the order above.
std::span<const DefectFacts> defects();

/// The CPU kernels of flash_varlen.hpp with one defect; arguments and workspace as theirs.
void forward_cpu_planted(Defect defect, const Forward& args, void* workspace, int workers, const ParallelFor& parallel);
void backward_cpu_planted(Defect defect, const Backward& args, void* workspace, int workers, const ParallelFor& parallel);

/// The CUDA kernels of flash_varlen.hpp with one defect (kernels/sm80/planted.cuh); arguments and workspace as theirs. What they
/// throw is what those throw.
void forward_cuda_planted(Defect defect, const Forward& args, const CudaLaunch& launch);
void backward_cuda_planted(Defect defect, const Backward& args, const CudaLaunch& launch, void* workspace);

}  // namespace attnbench::flash_varlen
