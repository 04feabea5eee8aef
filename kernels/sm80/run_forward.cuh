// Chooses the tiles of the forward and launches it.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels/sm80/forward.cuh"
#include "kernels/sm80/launch.cuh"

namespace attnbench::flash_varlen::sm80 {

/// Hidden scores are -inf, which a scale of 0 would turn into NaN; with this one all exp(S - max) of visible keys are 1 too.
inline constexpr float kSmallestScale = std::numeric_limits<float>::min();

template <class T, class S, class Variant>
void launch_forward(const Variant& variant, const Forward& f, const CudaLaunch& launch) {
  const ForwardArgs<T> args{
      .q = static_cast<const T*>(f.q.data),
      .k = static_cast<const T*>(f.k.data),
      .v = static_cast<const T*>(f.v.data),
      .o = static_cast<T*>(f.o.data),
      .lse = f.lse,
      .q_token = f.q.token_stride,
      .q_head = f.q.head_stride,
      .k_token = f.k.token_stride,
      .k_head = f.k.head_stride,
      .v_token = f.v.token_stride,
      .v_head = f.v.head_stride,
      .o_token = f.o.token_stride,
      .o_head = f.o.head_stride,
      .hq = static_cast<int>(f.shape.hq),
      .group = static_cast<int>(f.shape.hq / f.shape.hkv),
      .scale = std::max(f.shape.scale, kSmallestScale),
      .mask = mask_of(f.shape),
  };
  const dim3 grid((launch.max_q + S::kQueries - 1) / S::kQueries, f.shape.hq, f.shape.sequences);
  launch_checked(forward_kernel<T, S, Variant>, grid, S::kThreads, S::kSharedBytes, static_cast<cudaStream_t>(launch.stream),
                 args, variant, "forward kernel");
}

/// Both fit the 99 KB that the smallest parts of SM 8.x offer.
using ForwardDim64 = ForwardShape<64, 2, 4, 64>;
using ForwardDim128 = ForwardShape<128, 2, 4, 64>;

template <class T, class Variant>
void launch_forward_of_type(const Variant& variant, const Forward& f, const CudaLaunch& launch) {
  const int limit = shared_memory_limit(launch),
            needed = f.shape.d == 64 ? ForwardDim64::kSharedBytes : ForwardDim128::kSharedBytes;
  if (needed > limit)
    refuse("forward needs " + std::to_string(needed) + " bytes of shared memory a block, the limit is " + std::to_string(limit));
  f.shape.d == 64 ? launch_forward<T, ForwardDim64>(variant, f, launch) : launch_forward<T, ForwardDim128>(variant, f, launch);
}

template <class Variant>
void run_forward(const Variant& variant, const Forward& f, const CudaLaunch& launch) {
  check_shape(f.shape, launch);
  check_rows(f.q, "q"), check_rows(f.k, "k"), check_rows(f.v, "v"), check_rows(f.o, "o");
  if (f.shape.sequences == 0 || launch.max_q == 0) return;
  f.shape.type == Type::bf16 ? launch_forward_of_type<Bfloat>(variant, f, launch)
                             : launch_forward_of_type<Half>(variant, f, launch);
}

}  // namespace attnbench::flash_varlen::sm80
